"""Seeds one after another, side by side, and kept; a sample of the whole, which `refdiff check --selftest` runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.oracle.selftest import run as module
from tests.oracle.selftest import selftest
from tests.oracle.selftest.table import Count, Table


def _fake(seed: int, recipe: object, profile: str, name: str) -> Table:
    table = Table()
    table.counts[name, profile, "forward", "rows"].add(Count(mutants=seed, own=1))
    table.survivors[name, "forward", f"mutant_{seed}"] += 1
    return table


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "one_case", _fake)


@pytest.mark.usefixtures("fake")
def test_a_stopped_run_resumes(tmp_path: Path) -> None:
    folder, seen = tmp_path / "runs", []
    few = {"recipes": ["float16"], "profiles": ["tiny_values", "cancellation"], "keep": folder, "done": seen.append}
    first = selftest([3, 5], **few)
    assert seen == ["seed 3", "seed 5"]
    assert first.total(rule="rows").mutants == 16
    whole = selftest([3, 5, 7], **few)
    assert seen == ["seed 3", "seed 5", "seed 7"]
    assert whole.total(rule="rows").mutants == 30
    assert json.loads((folder / "seed_7.json").read_text())["rows"][0]["mutants"] == 7
    assert vars(whole.total()) == vars(
        selftest([3, 5, 7], recipes=["float16"], profiles=["tiny_values", "cancellation"]).total()
    )


@pytest.mark.usefixtures("fake")
def test_progress_counts_recipes_and_profiles(tmp_path: Path) -> None:
    few = {"recipes": ["float16"], "profiles": ["tiny_values", "cancellation"], "keep": tmp_path}
    for seeds, expected in (([3], [0, 1, 2, 2]), ([3, 5, 7], [0, 1, 2, 2, 3, 4, 4])):
        seen: list[tuple[int, int]] = []
        selftest(seeds, progress=lambda *counts: seen.append(counts), **few)  # noqa: B023
        assert seen == [(done, expected[-1]) for done in expected]


@pytest.mark.slow
def test_each_process_gives_the_table_of_its_seed(tmp_path: Path) -> None:
    """Of no recipe, so that nothing is judged."""
    done: list[str] = []
    assert selftest([50, 51], jobs=2, recipes=[], keep=tmp_path, done=done.append).to_dict() == Table().to_dict()
    assert sorted(done) == ["seed 50", "seed 51"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["seed_50.json", "seed_51.json"]


@pytest.mark.nightly
def test_a_sample() -> None:
    """All recipes and profiles on a seed that the table in the documentation has not."""
    table = selftest([2026])
    assert table.holds, str(table)
    assert table.total(rule="rows").own == 16 * (7 * 2 + 1) * 5
