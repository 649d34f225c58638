"""The command line: see tests/mutation/__init__.py."""

from __future__ import annotations

import argparse
import functools
import os
import shutil
import sys
import tempfile
import tomllib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

# before NumPy is imported: a child is one thread, and Hypothesis shows nothing that would have to be shrunk first
os.environ |= {
    **dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1"),
    "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
    "REFDIFF_HYPOTHESIS": "mutation",
}

from tests.mutation.mutants import Mutant, mutants_under
from tests.mutation.planted import Job, Outcome, Replaced, prepare, run

ROOT = Path(__file__).parents[2]
EQUIVALENT = Path(__file__).with_name("equivalent.toml")
COPIED = ("refdiff", "tests", "setup.cfg", "pyproject.toml", "README.md")
DEFAULT = ("refdiff/layers", "refdiff/model", "refdiff/generation/sampling.py")
ALSO = {
    "refdiff/model/weights/load.py": ("tests/model/test_stored_weights.py",),
    "refdiff/model/weights/precision.py": ("tests/model/weights/test_load.py",),
    "refdiff/model/weights/names.py": (
        "tests/model/weights/test_load.py",
        "tests/model/weights/test_save.py",
        "tests/model/test_pretrained.py",
    ),
    "refdiff/model/weights/save.py": ("tests/model/test_pretrained.py", "tests/test_browser.py"),
    "refdiff/model/rope_parameters.py": ("tests/model/test_config.py",),
    "refdiff/model/trainable.py": ("tests/model/test_stored_weights.py",),
    "refdiff/model/pretrained.py": (
        "tests/model/test_pickled.py",
        "tests/model/test_stored_weights.py",
        "tests/test_python_interface.py",
    ),
    "refdiff/model/weights/safetensors_file.py": ("tests/model/weights/test_load.py",),
    "refdiff/model/call.py": (
        "tests/model/test_pretrained.py",
        "tests/model/test_heads.py",
        "tests/model/test_inputs.py",
        "tests/backends/test_decoder.py",
        "tests/model/test_diffllama.py",
        "tests/model/variants/test_variants.py",
        "tests/test_golden.py",
        "tests/model/test_stored_weights.py",
    ),
    "refdiff/model/recorder.py": ("tests/model/test_diffllama.py", "tests/model/variants/test_variants.py"),
    "refdiff/model/heads.py": ("tests/model/test_trainable.py", "tests/model/test_diffllama.py"),
    "refdiff/model/variants/": (
        "tests/model/test_trainable.py",
        "tests/convert/test_rewire.py",
        "tests/convert/test_checks.py",
        "tests/cli/test_convert.py",
    ),
    "refdiff/model/diffllama.py": (
        "tests/model/variants/test_variants.py",
        "tests/test_golden.py",
        "tests/model/test_trainable.py",
        "tests/backends/test_decoder.py",
    ),
    "refdiff/model/config.py": (
        "tests/model/test_config_checks.py",
        "tests/model/test_rope_parameters.py",
        "tests/test_python_interface.py",
    ),
    "refdiff/model/config_checks.py": ("tests/model/test_config.py",),
    "refdiff/model/inputs.py": ("tests/model/test_heads.py",),
    "refdiff/model/commit.py": ("tests/model/weights/test_folder.py", "tests/model/weights/test_save.py"),
    "refdiff/layers": ("tests/layers/test_vjp.py", "tests/layers/test_init.py", "tests/layers/test_errors.py"),
    "refdiff/layers/__init__.py": ("tests/layers/test_composed.py",),
    "refdiff/layers/diff_": ("tests/layers/test_composed.py",),
    "refdiff/layers/diff_heads": ("tests/layers/test_heads.py",),
    "refdiff/layers/plain_heads.py": ("tests/layers/test_heads.py", "tests/layers/test_composed.py"),
    "refdiff/layers/softmax.py": ("tests/layers/test_composed.py",),
    "refdiff/layers/swiglu.py": ("tests/layers/test_composed.py",),
    "refdiff/model/diffllama_vjp.py": ("tests/model/test_trainable.py",),
}
"""Tests that notice mistakes in a file, or in the files of a folder, beside those of its own name."""


def tests_for(mutant: Mutant, root: Path) -> tuple[str, ...]:
    """The test file named like the mutant's, and those of `ALSO`; for a derivative these first; or the whole folder."""
    path = Path(mutant.file)
    mirror = str(Path("tests", *path.parts[1:]).with_name(f"test_{path.stem.strip('_')}.py"))
    others = [t for place, tests in ALSO.items() if mutant.file.startswith(place) for t in tests]
    if not (root / mirror).exists():
        return tuple(others) or (mirror if len(path.parts) == 2 else str(Path(mirror).parent),)
    derivative = mutant.function.endswith("_vjp") or mutant.function.startswith(("d_", "_through", "sum_to"))
    return (*others[:1], mirror, *others[1:]) if derivative else (mirror, *others)


def plant(root: Path, mutant: Mutant) -> None:
    """Have the mutated source imported in place of the file's."""
    module = ".".join(Path(mutant.file).with_suffix("").parts).removesuffix(".__init__")
    sys.meta_path.insert(0, Replaced(module, root / mutant.file, mutant.source))


def read_listed(path: Path) -> dict[tuple[str, str, str, str], str]:
    """The mutants that a file lists, and why no test can tell them from the source."""
    entries = tomllib.loads(path.read_text(encoding="utf-8")).get("mutant", [])
    return {(e["file"], e["function"], e["before"], e["after"]): e["reason"] for e in entries}


def choose(mutants: list[Mutant], equivalent: set[tuple[str, ...]], sample: int | None, seed: str) -> list[Mutant]:
    """All mutants, or those that `seed` draws of the ones that are not listed as equivalent, in the files' order."""
    if sample is None:
        return mutants
    drawn = sorted((m for m in mutants if m.key not in equivalent), key=lambda m: m.rank(seed))[:sample]
    return [m for m in mutants if m in set(drawn)]


def limits(root: Path, mutants: list[Mutant], jobs: int) -> dict[tuple[str, ...], float]:
    """Run the tests on the source as it is, and allow a mutant twice as long, and ten seconds.

    Raises:
        SystemExit: they fail.
    """
    files = list(dict.fromkeys(t for m in mutants for t in tests_for(m, root)))
    if missing := [t for t in files if not (root / t).exists()]:
        raise SystemExit(f"there is no {', '.join(missing)}")
    seconds: dict[str, float] = {}
    for at_once in (jobs, 1):  # what fails beside another file is shown, and tried once more by itself
        left = [file for file in files if file not in seconds]
        for number, outcome in run([Job(lambda: None, (file,), 600) for file in left], root, at_once):
            if outcome.result == "survived":
                seconds[left[number]] = outcome.seconds
            else:
                print(f"{outcome.by or left[number]}: {outcome.result}: {outcome.why}", flush=True)
    if failed := [file for file in files if file not in seconds]:
        raise SystemExit(f"{', '.join(failed)} fails as it is")
    return {tests: 10 + 2 * sum(seconds[t] for t in tests) for tests in {tests_for(m, root) for m in mutants}}


def judge(root: Path, mutants: list[Mutant], jobs: int) -> Iterator[tuple[Mutant, Outcome]]:
    """Run each mutant's tests; first the one that noticed another mutant of its function."""
    allowed, noticed = limits(root, mutants, jobs), dict[tuple[str, str], str]()

    def queue() -> Iterator[Job]:
        for mutant in mutants:
            tests = tests_for(mutant, root)
            first = tuple(noticed[place] for place in [(mutant.file, mutant.function)] if place in noticed)
            yield Job(functools.partial(plant, root, mutant), (*first, *tests), allowed[tests])

    for number, outcome in run(queue(), root, jobs):
        mutant = mutants[number]
        if "::" in outcome.by:
            noticed[mutant.file, mutant.function] = outcome.by
        yield mutant, outcome


def table(results: list[tuple[Mutant, Outcome]], known: set[tuple[str, ...]], left_out: Counter[str]) -> str:
    """One line for each file: mutants, killed, equivalent, survived, score, seconds a mutant, mutants not run."""
    lines = [f"{'file':44} run killed equiv. survived score  s each not run"]
    files = [*dict.fromkeys([*(m.file for m, _ in results), *left_out])]
    for file in [*files, "all"]:
        of_file = [(m, o) for m, o in results if file in (m.file, "all")]
        survived = [m for m, o in of_file if o.result == "survived"]
        equal = sum(m.key in known for m in survived)
        killed, wrong = len(of_file) - len(survived), len(survived) - equal
        score = f"{100 * killed / (killed + wrong):5.1f}%" if killed + wrong else "     -"
        each = sum(o.seconds for _, o in of_file) / max(1, len(of_file))
        rest = left_out.total() if file == "all" else left_out[file]
        lines.append(f"{file:44} {len(of_file):3} {killed:6} {equal:6} {wrong:8} {score} {each:7.2f} {rest:7}")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    """Run the mutants; 0 where none of those that are listed has changed, and the score is met."""
    parser = argparse.ArgumentParser("python -m tests.mutation", description=__doc__)
    parser.add_argument("--path", type=Path, action="append", help=f"file or folder; {' '.join(DEFAULT)} unless given")
    parser.add_argument("--function", action="append", default=[], help="run only the mutants of it")
    parser.add_argument("--sample", type=int, help="run only so many, drawn by --seed")
    parser.add_argument("--seed", default="", help="any text, such as a commit's hash")
    parser.add_argument("--jobs", type=int, default=1, help="how many at once")
    parser.add_argument("--at-least", type=float, default=100, help="the score in percent below which this fails")
    parser.add_argument("--equivalent", type=Path, default=EQUIVALENT, help=argparse.SUPPRESS)
    parser.add_argument("--root", type=Path, default=ROOT, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    root = args.root.resolve()
    paths = [root / p for p in args.path or DEFAULT]
    mutants, known = list(mutants_under(paths, root)), read_listed(args.equivalent)

    keys = {m.key for m in mutants}
    here = [key for key in known if any((root / key[0]).is_relative_to(p) for p in paths)]
    stale = [f"no such mutant: {key[0]}, {key[1]}: {key[2]} -> {key[3]}" for key in here if key not in keys]
    if missing := set(args.function) - {m.function for m in mutants}:
        parser.error(f"--function: there is none called {', '.join(missing)}")
    wanted = [m for m in mutants if not args.function or m.function in args.function]
    chosen = choose(wanted, set(known), args.sample, args.seed)

    with tempfile.TemporaryDirectory(prefix="mutation-") as folder:
        copy = Path(folder).resolve()
        for name in COPIED:
            if (root / name).is_dir():
                shutil.copytree(root / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
            elif (root / name).exists():
                shutil.copy2(root / name, copy / name)
        prepare()
        results = []
        for mutant, outcome in judge(copy, chosen, args.jobs):
            results.append((mutant, outcome))
            listed = mutant.key in known
            if outcome.result == "survived" and not listed:
                print(f"survived: {mutant.file}:{mutant.line} in {mutant.function or 'the module'}", flush=True)
                print(mutant.diff(), flush=True)
            if outcome.result != "survived" and listed:
                stale.append(
                    f"listed, but {outcome.result} by {outcome.by}: {mutant.file}:{mutant.line} {mutant.diff()}"
                )
    results.sort(key=lambda r: (r[0].file, r[0].line))
    run_already = {m for m, _ in results}
    left_out = Counter(m.file for m in mutants if m not in run_already)
    print(table(results, set(known), left_out))
    print(*stale, sep="\n")
    killed = sum(o.result != "survived" for _, o in results)
    wrong = sum(o.result == "survived" and m.key not in known for m, o in results)
    score = 100 * killed / max(1, killed + wrong)
    if score < args.at_least:
        print(f"{wrong} mutants survived that are not equivalent: score {score:.1f}, not {args.at_least}")
    return int(bool(stale) or score < args.at_least)


if __name__ == "__main__":
    sys.exit(main())
