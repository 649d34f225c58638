"""The oracle's sweeps on two workers: the tables and verdicts of one machine."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from refdiff.cli import main
from refdiff.oracle.cases.fixed import cases, small_spec
from refdiff.oracle.verdict.check import check
from tests.oracle.selftest import run
from tests.oracle.selftest.table import Count, Table
from tests.oracle.user_kernels import right

ROOT = Path(__file__).parents[2]


def one_case_of_a_seed(seed: int, recipes: object, profiles: object, kernels: object, done: object = None) -> Table:
    """In place of all that the selftest does with a seed, which takes a minute: one right kernel, on one case."""
    case = cases("natural", seed, spec=small_spec("hf_diffllama"))[0]
    verdict = check(right(case.spec, case.inputs), case.spec, case.inputs, recipe="float32", members=2)
    table = Table()
    table.counts["float32", "natural", "forward", "rows"].add(Count(mutants=seed, own=int(bool(verdict))))
    return table


@pytest.mark.usefixtures("workers")
def test_the_selftest(scheduler: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "one_seed", one_case_of_a_seed)
    command = ["check", "--selftest", "--seeds", "5", "--json"]
    status = main(command)
    here, seen = capsys.readouterr()
    assert json.loads(here)["rows"][0]["mutants"] == sum(range(4000, 4005))
    assert json.loads(here)["rows"][0]["own"] == 5
    assert main([*command, "--dask", scheduler]) == status
    there, seen_there = capsys.readouterr()
    assert there == here
    assert seen_there == seen
    assert seen.splitlines()[1:] == [f"seed {seed} done" for seed in range(4000, 4005)]


@pytest.mark.usefixtures("workers")
@pytest.mark.parametrize(
    ("function", "profile", "status"), [("dense_with_gradients", "natural", 0), ("wrong_rope", "discriminating", 1)]
)
def test_conformance(function: str, profile: str, status: int, scheduler: str, environment: dict[str, str]) -> None:
    given = {"REFDIFF_KERNEL": f"tests.oracle.user_kernels:{function}", "REFDIFF_PROFILES": profile}
    options = ("--pyargs", "refdiff.oracle.conformance", "-p", "no:cacheprovider", "-vv")
    command = [sys.executable, "-m", "pytest", *options]
    clean = {name: value for name, value in environment.items() if not name.startswith(("PYTEST", "COV"))}

    def said(**more: str) -> tuple[int, list[str]]:
        env = {**clean, **given, **more}
        done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
        return done.returncode, sorted(line.split(" [")[0] for line in done.stdout.splitlines() if "::" in line)

    here = said()
    assert here[0] == status
    assert len(here[1]) > 8
    assert said(REFDIFF_DASK=scheduler) == here
