"""Seeds, recipes and profiles, one after another or side by side, into a table."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import partial
from multiprocessing import get_context
from pathlib import Path

from refdiff.files import replace_atomically
from refdiff.oracle.rounding.recipe import STORAGE, Recipe
from tests.oracle.selftest.one_case import one_case
from tests.oracle.selftest.table import Table, table_from_dict
from tests.oracle.selftest.third_party_kernels import case_of_others, kernels_of

RECIPES = ("float32", "tf32", "bfloat16", "float16")
PROFILES = ("natural", "cancellation", "tiny_values", "extreme")


def selftest(
    seeds: Sequence[int] = range(2),
    *,
    recipes: Sequence[str] = RECIPES,
    profiles: Sequence[str] = PROFILES,
    kernels: str | None = None,
    jobs: int = 1,
    keep: str | Path | None = None,
    done: Callable[[str], None] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Table:
    """Judge mutants and correct kernels by our rule and by those of others.

    Args:
        seeds: of the numbers; budgets were calibrated on seeds from 1000.
        kernels: package.module:NAME, correct kernels of others to judge too (`third_party_kernels`).
        jobs: how many seeds at a time, each in a process of its own.
        keep: a folder with a file for every seed that is done, by the same recipes and profiles: it is not done again.
        done: called with words for each seed that is done.
        progress: called with how many recipes and profiles of all seeds are done, and how many there are.

    Raises:
        ValueError: `kernels` names no mapping.
    """
    folder = None if keep is None else Path(keep)
    tables = {s: table_from_dict(json.loads(_file(folder, s).read_text("utf-8"))) for s in seeds if _kept(folder, s)}
    work = partial(one_seed, recipes=tuple(recipes), profiles=tuple(profiles), kernels=kernels)
    left = [s for s in seeds if s not in tables]
    cases = len(recipes) * len(profiles)
    if progress is not None and (jobs == 1 or len(left) < 2):
        progress(0, cases * len(left))
        count = itertools.count(1)
        work = partial(work, done=lambda: progress(next(count), cases * len(left)))
    for number, (seed, found) in enumerate(_each(jobs, work, left), 1):
        tables[seed] = found
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            with replace_atomically(_file(folder, seed)) as file:
                file.write(json.dumps(found.to_dict()).encode())
        if done is not None:
            done(f"seed {seed}")
        if progress is not None:
            progress(cases * number, cases * len(left))
    table = Table()
    for seed in seeds:  # in this order, whichever was done first
        table.add(tables[seed])
    return table


def one_seed(
    seed: int,
    recipes: Sequence[str],
    profiles: Sequence[str],
    kernels: str | None,
    done: Callable[[], None] = lambda: None,
) -> Table:
    """All recipes and profiles of one seed; `done` is called after each."""
    others = None if kernels is None else kernels_of(kernels)
    table = Table()
    for name in recipes:
        for profile in profiles:
            table.add(one_case(seed, Recipe.of(name), profile, name))
            if others is not None and name in STORAGE:
                table.add(case_of_others(seed, name, profile, others))
            done()
    return table


def _each(jobs: int, work: Callable[[int], Table], seeds: Sequence[int]) -> Iterable[tuple[int, Table]]:
    if jobs == 1 or len(seeds) < 2:
        for seed in seeds:
            yield seed, work(seed)
        return
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        runs = {pool.submit(work, seed): seed for seed in seeds}
        for run in as_completed(runs):
            yield runs[run], run.result()


def _file(folder: Path, seed: int) -> Path:
    return folder / f"seed_{seed}.json"


def _kept(folder: Path | None, seed: int) -> bool:
    return folder is not None and _file(folder, seed).exists()
