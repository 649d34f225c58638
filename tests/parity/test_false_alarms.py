"""The command that counts false alarms: what it tells when it is ended, and that processes change nothing."""

from __future__ import annotations

import itertools
import os
import signal
from collections.abc import Iterator
from typing import Any

import pytest

from tests.parity import false_alarms


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_checks_made_before_a_signal_are_counted(
    number: signal.Signals, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    some = list(itertools.islice(false_alarms.checks(0, "ms_v1"), 3))
    before = signal.getsignal(signal.SIGTERM)

    def ended(*args: Any) -> Iterator[Any]:
        yield from some
        os.kill(os.getpid(), number)
        yield from itertools.repeat(some[0], 1000)

    monkeypatch.setattr(false_alarms, "checks", ended)
    assert false_alarms.main([]) == 0
    tensors = sum(len(verdict.tensors) for _, verdict in some)
    assert capsys.readouterr().out.startswith(f"{tensors} checks, in 3 runs of kernels: 0 refused, ")
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.slow
def test_processes_judge_the_same() -> None:
    one, two = (itertools.islice(false_alarms.checks(5, "attention", jobs), 6) for jobs in (1, 2))
    assert [(what, str(verdict)) for what, verdict in one] == [(what, str(verdict)) for what, verdict in two]


@pytest.mark.parametrize(("seed", "profile"), [(500002, "extreme"), (600004, "extreme"), (600005, "tiles")])
def test_kernels_that_were_refused_once(seed: int, profile: str) -> None:
    """dq of 1e-245; a flushed gradient of a score times a large query; weights recomputed from scores of 300."""
    some = itertools.takewhile(lambda problem: problem[0] == seed, false_alarms.problems(seed))
    for problem in some:
        if problem[2:4] == (profile, "float32"):
            for what, verdict in false_alarms.judged(problem):
                assert verdict.status != "fail", f"{what}: {verdict}"
