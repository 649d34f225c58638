"""Names of mutants: a right one, one of the same function, and one that is wrong."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from refdiff.oracle import deviations
from refdiff.oracle.diagnosis.hypotheses import of_mistake
from refdiff.oracle.diagnosis.ranking import NONE_FITS, UNIQUE, Finding, Ranking
from tests.oracle.selftest import names
from tests.oracle.selftest.mutants import Mutant
from tests.oracle.selftest.settings import Setting, settings


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> tuple[Setting, ...]:
    """A packed problem of some deviations, whose forward alone is tried."""
    small = next(s for s in settings(41) if s.kind == "packed")
    found = (replace(small, deviations=small.deviations[:3]),)
    monkeypatch.setattr(names, "settings", lambda seed: found)
    return found


def _answering(monkeypatch: pytest.MonkeyPatch, name: str | None) -> None:
    """Let each diagnosis be this name."""

    def answer(*args: object, **options: object) -> Ranking:
        if name is None:
            return Ranking(NONE_FITS)
        found = next(d for s in settings(41) for d in (*s.deviations, *deviations(s.spec)) if d.name == name)
        return Ranking(UNIQUE, (Finding(((of_mistake(found), 0.0),), 0.5, 1.0, fits=True),))

    monkeypatch.setattr(names, "diagnose", answer)


def test_only_another_function_is_a_wrong_name(few: tuple[Setting, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    given = few[0].deviations[0].name
    _answering(monkeypatch, given)
    found = {(m.name == given, how) for m, how, _ in names.diagnosed(41, "float32", "natural", 0, 1)}
    assert found == {(True, "unique"), (False, names.WRONG)}
    _answering(monkeypatch, None)
    assert {how for _, how, _ in names.diagnosed(41, "float32", "natural", 0, 1)} == {NONE_FITS}


def test_the_command_fails_on_a_wrong_name(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    answers = ["unique", "unique"]

    def some(*args: Any) -> Iterator[tuple[Mutant, str, str]]:
        for how in answers:
            yield Mutant("forward", "layer_norm", "norm", {}), how, "rms"

    monkeypatch.setattr(names, "diagnosed", some)
    assert names.main(["--noisy", "0", "--mistakes", "0"]) == 0
    assert capsys.readouterr().out == "32 outputs diagnosed: 32 unique; 0 had a wrong name\n"
    answers[1] = names.WRONG
    assert names.main(["--seed", "3", "--noisy", "0", "--mistakes", "0"]) == 1
    assert "seed 8003 tf32 extreme forward: layer_norm was called rms\n" in capsys.readouterr().out


def test_an_output_without_a_name(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    _answering(monkeypatch, None)
    assert names.main(["--seeds", "0", "--noisy", "1", "--mistakes", "2"]) == 0
    _answering(monkeypatch, "maps_swapped")
    assert names.main(["--seeds", "0", "--noisy", "1", "--mistakes", "2"]) == 1
    assert " ms_v1 was called maps_swapped\n" in capsys.readouterr().out
