"""The command that counts false alarms: what it tells when it is ended, and that processes change nothing."""

from __future__ import annotations

import itertools

import pytest

from tests.parity import false_alarms


@pytest.mark.parametrize(("seed", "profile"), [(500002, "extreme"), (600004, "extreme"), (600005, "tiles")])
def test_kernels_that_were_refused_once(seed: int, profile: str) -> None:
    """dq of 1e-245; a flushed gradient of a score times a large query; weights recomputed from scores of 300."""
    some = itertools.takewhile(lambda problem: problem[0] == seed, false_alarms.problems(seed))
    for problem in some:
        if problem[2:4] == (profile, "float32"):
            for what, verdict in false_alarms.judged(problem):
                assert verdict.status != "fail", f"{what}: {verdict}"
