"""Evaluate the answers of the sides into rows of a report, and describe machine and model."""

from __future__ import annotations

import itertools
import platform
import re
import statistics
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

import refdiff
from refdiff.backends.numpy.thread_pool import cores
from refdiff.bench.rows import BenchRow
from refdiff.bench.sides import BenchSettings, Measurement
from refdiff.memory import UNKNOWN_MEMORY, physical_memory
from refdiff.model.config import DiffLlamaConfig
from refdiff.model.weights.names import count_parameters, parameter_shapes

OURS = "refdiff"
PACKAGES = ("numpy", "transformers", "torch")
MAX_SHARE = 1.05
"""Share of a ceiling above which one of the two was measured wrongly. The excess allows for the spread of both."""


def spread(values: Sequence[float]) -> dict[str, float]:
    """Return median, minimum and maximum of one or more numbers."""
    return {"median": statistics.median(values), "low": min(values), "high": max(values)}


def difference(ours: Measurement, theirs: Measurement) -> str | None:
    """Describe the first difference between the results in two answers, or return None.

    Tokens and texts must be equal. Losses may differ by 0.1 %, since the sides sum in different orders.
    """
    for key in ("tokens", "text", "loss"):
        our_values, their_values = (np.atleast_1d(answer.get(key, [])) for answer in (ours, theirs))
        if our_values.shape != their_values.shape:
            return f"{key}: {our_values.shape} here and {their_values.shape} there"
        if key in ("tokens", "text"):
            same = our_values == their_values
        else:  # NaN differs from every number, also from NaN
            same = abs(our_values - their_values) <= 1e-3 * abs(their_values).max(initial=0)
        for place in np.argwhere(~same)[:1]:
            return f"{key} {tuple(map(int, place))}: {our_values[*place]} here and {their_values[*place]} there"
    return None


def evaluate(
    row: BenchRow,
    answers: dict[str, list[Measurement]],
    ceilings: Sequence[Measurement] = (),
    *,
    memory: bool = False,
    comparable: bool = True,
    error: Exception | None = None,
) -> dict[str, Any]:
    """Return a row of the report.

    Args:
        answers: of each side, one per round.
        ceilings: measured before each round and after the last.
        memory: evaluate the peak memory, as the second row of a kind that has one.
        comparable: whether the results of the sides must agree.
        error: the reason why there are no answers.

    A ratio is that of consecutive measurements. Above 1, refdiff is faster, or needs more memory.
    """
    unit = "B" if memory else row.kind.unit
    key = "bytes" if unit == "B" else "seconds"
    sides: dict[str, Any] = {}
    against: dict[str, Any] = {}
    for name, side_answers in answers.items():
        rates = [answer["amount"] / answer[key] if "/" in unit else answer[key] for answer in side_answers]
        sides[name] = {key: [answer[key] for answer in side_answers], "rate": spread(rates)}
        if "passes" in side_answers[0]:
            sides[name]["passes"] = [answer["passes"] for answer in side_answers]
        if name != OURS:
            rounds = list(zip(answers[OURS], side_answers, strict=True))
            ratios = [ours[key] / theirs[key] if unit == "B" else theirs[key] / ours[key] for ours, theirs in rounds]
            differences = itertools.starmap(difference, rounds) if comparable else ()
            against[name] = {"ratio": spread(ratios), "difference": next(filter(None, differences), None)}
    return {
        "row": row.spelled,
        "title": row.format_title(row.kind.memory) if memory else row.title,
        "unit": unit,
        "sides": sides,
        "against": against,
        "ceiling": _ceiling(answers, ceilings) if ceilings else None,
        "error": None if error is None else " ".join(str(error).split()),
    }


def failed(entry: dict[str, Any]) -> bool:
    """Whether a row of the report has an error, or the results of the sides differ."""
    return entry["error"] is not None or any(beside["difference"] for beside in entry["against"].values())


def _ceiling(answers: dict[str, list[Measurement]], ceilings: Sequence[Measurement]) -> dict[str, Any]:
    """Return the share of the ceiling that each side reaches: the higher of those before and after each round.

    A side is `doubtful` if it exceeds the ceiling, or for gemv the higher of `rate` and `read`.
    """
    around = list(itertools.pairwise(ceilings))
    rates = [max(a["rate"], b["rate"]) for a, b in around]
    limits = [max(x for end in ends for x in (end["rate"], end.get("read", 0))) for ends in around]

    def share(name: str, limits: list[float]) -> dict[str, float]:
        pairs = zip(answers[name], limits, strict=True)
        return spread([answer["work"] / answer["seconds"] / limit for answer, limit in pairs])

    return {
        "kind": ceilings[0]["kind"],
        "rates": rates,
        **({"read": limits} if "read" in ceilings[0] else {}),
        "counted": {name: side_answers[0]["work"] for name, side_answers in answers.items()},
        "share": {name: share(name, rates) for name in answers},
        "doubtful": [name for name in answers if share(name, limits)["median"] > MAX_SHARE],
    }


def report(rows: list[dict[str, Any]], settings: BenchSettings, *, model: dict[str, Any] | None) -> dict[str, Any]:
    """Return what `--json` writes: machine, model, settings, and the rows, each with refdiff's commit."""
    now, s = commit(), settings
    return {
        "format": "refdiff bench 1",
        "machine": describe_machine(s.threads, s.backend),
        "model": model,
        "settings": {
            "dtype": s.dtype,
            "backend": s.backend,
            "pairs": s.pairs,
            "decoded_tokens": s.steps,
            "looked_up_tokens": s.lookup_tokens,
            "training_batch": [s.batch, s.context],
        },
        "rows": [{**row, "commit": now} for row in rows],
    }


def describe_model(like: str | None, folder: str | None, name: str | None) -> dict[str, Any] | None:
    """Return the name of the measured model, without folders, and its number of parameters; None without a model."""
    if folder is None:
        return None
    shapes = parameter_shapes(DiffLlamaConfig.from_pretrained(folder), "DiffLlamaForCausalLM")
    label = f"random weights in the dimensions of {like}" if like else Path(name or folder).name
    return {"name": label, "parameters": count_parameters(shapes.values())}


def processor(info: Path = Path("/proc/cpuinfo")) -> str:
    """Return the processor's model name if the system has it, or else its architecture."""
    text = info.read_text(encoding="utf-8", errors="replace") if info.exists() else ""
    named = re.search(r"^(?:model name|Model|cpu model)[ \t]*:[ \t]*(\S.*)", text, re.MULTILINE)
    return " ".join(named[1].split()) if named else platform.processor() or platform.machine()


def describe_machine(threads: int, backend: str = "numpy") -> dict[str, Any]:
    """Return processor, memory, system, the backend's device, and the versions of installed packages."""
    versions = {"refdiff": refdiff.__version__, "python": platform.python_version()}
    for name in PACKAGES:
        with suppress(PackageNotFoundError):
            versions[name] = version(name)
    device = {}
    if backend == "cupy":
        import cupy

        runtime = cupy.cuda.runtime
        device["device"] = runtime.getDeviceProperties(runtime.getDevice())["name"].decode()
        major, minor = divmod(runtime.runtimeGetVersion(), 1000)
        versions |= {"cupy": cupy.__version__, "cuda": f"{major}.{minor // 10}"}
    memory = physical_memory()
    build: Any = np.show_config(mode="dicts")
    blas = build.get("Build Dependencies", {}).get("blas", {})
    return {
        **device,
        "processor": processor(),
        "cores": cores(),
        "threads": threads,
        "memory_bytes": None if memory == UNKNOWN_MEMORY else memory,
        "system": f"{platform.system()} {platform.machine()}",
        "blas": " ".join(filter(None, (blas.get("name"), blas.get("version")))),
        "versions": versions,
    }


def commit(package: Path = Path(__file__).parents[1]) -> str | None:
    """Return the commit of a package's source, with a mark if files changed; None if git does not track the source."""

    def git(*command: str) -> str:
        words = ["git", "-C", str(package), *command]
        return subprocess.run(words, check=True, capture_output=True, text=True).stdout.strip()  # noqa: S603, only the git commands below

    with suppress(OSError, subprocess.CalledProcessError):
        git("ls-files", "--error-unmatch", "__init__.py")  # fails for a package installed inside another checkout
        return git("rev-parse", "--short=7", "HEAD") + (
            " with changes" if git("status", "--porcelain", "--", ".") else ""
        )
    return None
