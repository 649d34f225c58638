"""What the stored runs of both experiments of chapter 05 came to: by kind, and the main measures at a glance."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from experiments.retrieval import Experiment
from experiments.retrieval_table import mean_and_interval

DATA = Path(__file__).parents[1] / "data"
KINDS = {"plain": "none", "v1": "hf", "v2": "v2"}
TEXT_KINDS = {
    "plain": ("none", 6e-3), "v1": ("hf", 6e-3), "v2": ("v2", 6e-3), "v1, slow": ("hf", 2e-3),
    "v1, no norm": ("hf-no-norm", 6e-3), "v1, Muon": ("hf-muon", 6e-3), "plain, Muon": ("none-muon", 6e-3),
}  # fmt: skip
"""Name of a kind of text model → what its runs are called, and their learning rate."""

Runs = dict[str, list[dict[str, Any]]]


def load() -> tuple[dict[str, Any], dict[str, Any]]:
    """Return what data/retrieval.json and data/variants.json hold."""
    retrieval, variants = (
        json.loads((DATA / f"{name}.json").read_text(encoding="utf-8")) for name in ("retrieval", "variants")
    )
    return retrieval, variants


def retrieval_runs(stored: Mapping[str, Any], part: str = "runs") -> Runs:
    """Return the runs of the first experiment by kind, or its "controls"; each run gets its `learned_at`."""
    every = max(stored["experiment"]["steps"] // 100, 1)  # of the losses that are kept
    for run in stored[part]:
        below = np.flatnonzero(np.array(run["losses"]) < 0.2)
        run["learned_at"] = int(below[0]) * every if len(below) else None
    return {kind: [run for run in stored[part] if run["wiring"] == name] for kind, name in KINDS.items()}


def text_runs(stored: Mapping[str, Any]) -> Runs:
    """Return the runs of the second experiment by name, in the order of their seeds."""
    return {
        name: sorted((r for r in stored["runs"] if (r["kind"], r["rate"]) == which), key=lambda r: r["seed"])
        for name, which in TEXT_KINDS.items()
    }


def summary(runs: Runs, text: Runs) -> dict[str, dict[str, list[float]]]:
    """Return measure → kind → one number for each seed."""
    losses = {f"{kind}, AdamW": kind for kind in KINDS} | {f"{kind}, Muon": f"{kind}, Muon" for kind in ("plain", "v1")}
    return {
        "look-up learned at step (lower is better)": {k: [r["learned_at"] for r in mine] for k, mine in runs.items()},
        **{
            f"numbers found in {n} tokens, % (higher is better)": {
                kind: [100 * run["measured"][n]["accuracy"] for run in mine] for kind, mine in runs.items()
            }
            for n in ("64", "256")
        },
        "loss on text, nats per token (lower is better)": {
            shown: [run["validation"][-1][1] for run in text[name]] for shown, name in losses.items()
        },
    }


def summary_notes(runs: Runs, text: Runs) -> dict[str, list[str]]:
    """Return measure → for each kind its difference from plain attention, as `beside_plain` writes it."""
    return {
        measure: [beside_plain(by_kind, kind, 2 if "loss" in measure else 0) for kind in by_kind]
        for measure, by_kind in summary(runs, text).items()
    }


def beside_plain(by_kind: Mapping[str, Sequence[float]], kind: str, digits: int) -> str:
    """Return kind − plain by seed as text, where plain is trained as the kind is; empty for plain itself."""
    plain = by_kind["plain" + kind.removeprefix(kind.split(",")[0])]
    if by_kind[kind] is plain:
        return ""
    return written(mean_and_interval([a - b for a, b in zip(by_kind[kind], plain, strict=True)]), digits)


def written(found: tuple[float, float], digits: int = 0) -> str:
    """Return a difference's mean and half its 95 % interval as text; a star marks an interval without 0.

    Where `digits` decimals do not show that an interval excludes 0, it gets more.
    """
    mean, half = found
    while abs(mean) > half and round(abs(mean), digits) <= round(half, digits):
        digits += 1
    return f"{mean:+.{digits}f} ± {half:.{digits}f}{'*' if abs(mean) > half else ''}".replace("-", "−")


def summary_rows(runs: Runs, text: Runs) -> list[list[str]]:
    """Return the means of `summary`, and the differences from plain attention, as rows of a table."""
    rows = [["measure", "kind", "mean", "minus plain"]]
    for measure, by_kind in summary(runs, text).items():
        digits = 2 if "loss" in measure else 0
        rows += [
            [measure.split(" (")[0], kind, f"{np.mean(values):.{digits}f}", beside_plain(by_kind, kind, digits)]
            for kind, values in by_kind.items()
        ]
    return rows


def size_rows(stored: Mapping[str, Any]) -> list[list[str]]:
    """Return what a layer of each kind of the first experiment is made of, and all parameters, as rows of a table."""
    columns = [["", "query heads, each with a map", "outputs: weighted sums of values", "λ", "after the difference",
                "width of SwiGLU", "parameters, all layers"]]  # fmt: skip
    about = {
        "plain": ("–", "–"), "v1": ("one per layer", "norm and factor"), "v2": ("one per token and pair", "nothing"),
    }  # fmt: skip
    for kind, mine in retrieval_runs(stored).items():
        config = _experiment(stored).config(KINDS[kind])
        heads = config.num_attention_heads * (2 if kind == "v2" else 1)
        outputs = heads if kind == "plain" else heads // 2
        columns.append([kind, str(heads), str(outputs), *about[kind], str(config.intermediate_size),
                        f"{mine[0]['parameters']:,}"])  # fmt: skip
    return [list(row) for row in zip(*columns, strict=True)]


def _experiment(stored: Mapping[str, Any]) -> Experiment:
    settings = stored["experiment"].items()
    return Experiment(**{name: tuple(value) if isinstance(value, list) else value for name, value in settings})


def controls(stored: Mapping[str, Any]) -> dict[str, list[int | None]]:
    """Return the step at which each run with λ = 0 learned the look-up, or None."""
    found = retrieval_runs(stored, "controls")
    return {kind: [run["learned_at"] for run in found[kind]] for kind in ("v1", "v2")}


def learned_lines(stored: Mapping[str, Any]) -> list[str]:
    """Say at which step each run learned the look-up."""
    learned = {kind: [run["learned_at"] for run in mine] for kind, mine in retrieval_runs(stored).items()}
    learned |= {f"{kind}, λ = 0": steps for kind, steps in controls(stored).items()}
    never = f"not in {stored['experiment']['begin']:,}"
    return [f"{kind:9} learned at step {', '.join(str(step or never) for step in steps)}"
            for kind, steps in learned.items()]  # fmt: skip


def first_losses(stored: Mapping[str, Any]) -> tuple[list[int], dict[str, list[list[float]]]]:
    """Return steps, and of each kind the losses of its runs at them, while training sequences are short."""
    every = max(stored["experiment"]["steps"] // 100, 1)
    steps = list(range(0, stored["experiment"]["begin"], every))
    return steps, {k: [run["losses"][: len(steps)] for run in mine] for k, mine in retrieval_runs(stored).items()}


def accuracies(runs: Runs) -> dict[str, list[list[float]]]:
    """Return kind → run → the share of numbers found in sequences of each length."""
    return {kind: [[run["measured"][n]["accuracy"] for n in _lengths(runs)] for run in mine]
            for kind, mine in runs.items()}  # fmt: skip


def _lengths(runs: Runs) -> list[str]:
    return sorted(runs["plain"][0]["measured"], key=int)


def guesses(stored: Mapping[str, Any]) -> dict[str, float]:
    """Return tokens of a sequence → the share of numbers found by naming any number of the sequence."""
    experiment = _experiment(stored)
    return {str(n): 1 / experiment.counts(n)[0] for n in experiment.lengths}


def minus_plain(runs: Runs) -> dict[str, dict[str, dict[str, tuple[float, float]]]]:
    """Return measure → kind → tokens of a sequence → kind − plain by seed, in points: mean, half interval."""

    def values(kind: str, n: str, what: str) -> Any:
        return np.array([100 * run["measured"][n][what] for run in runs[kind]])

    return {
        title: {
            kind: {n: mean_and_interval(list(values(kind, n, what) - values("plain", n, what))) for n in _lengths(runs)}
            for kind in ("v1", "v2")
        }
        for title, what in (
            ("numbers found", "accuracy"), ("attention to noise", "noise"), ("attention to the answer", "answer"),
        )
    }  # fmt: skip


def difference_rows(runs: Runs) -> list[list[str]]:
    """Return `minus_plain` as rows of a table."""
    rows = [["percentage points", *(f"{n} tokens" for n in _lengths(runs))]]
    for title, by_kind in minus_plain(runs).items():
        rows += [[f"{title}, {kind} − plain", *map(written, found.values())] for kind, found in by_kind.items()]
    return rows


def losses_by_step(text: Runs) -> dict[str, dict[str, dict[int, tuple[float, float]]]]:
    """Return optimizer → kind → step → validation loss: a mean, and half its 95 % interval."""
    found: dict[str, dict[str, dict[int, tuple[float, float]]]] = {"AdamW": {}, "Muon": {}}
    for kind in ("plain", "v1", "v2", "v1, no norm", "plain, Muon", "v1, Muon"):
        by_step = zip(*(run["validation"] for run in text[kind]), strict=True)
        means = {at[0][0]: mean_and_interval([loss for _, loss in at]) for at in by_step}
        found["Muon" if "Muon" in kind else "AdamW"][kind.removesuffix(", Muon")] = means
    return found


def text_differences(text: Runs) -> dict[str, tuple[float, float]]:
    """Return kind → its last loss minus that of plain attention with the same optimizer, by seed."""
    last = {kind: [run["validation"][-1][1] for run in mine] for kind, mine in text.items()}
    return {
        kind: mean_and_interval(
            [a - b for a, b in zip(mine, last["plain, Muon" if "Muon" in kind else "plain"], strict=False)]
        )
        for kind, mine in last.items()
        if "plain" not in kind
    }


def loss_rows(text: Runs) -> list[list[str]]:
    """Return the last losses of all kinds, and `text_differences`, as rows of a table."""
    differences = text_differences(text)
    rows = [["kind, optimizer", "loss at the end", "minus plain"]]
    for kind, mine in text.items():
        mean, half = mean_and_interval([run["validation"][-1][1] for run in mine])
        name = kind if "Muon" in kind else f"{kind.removesuffix(', slow')}, AdamW"
        if kind.endswith("slow"):
            name += f", rate {mine[0]['rate']}"
        difference = written(differences[kind], 2) if kind in differences else ""
        rows.append([name, f"{mean:.2f} ± {half:.2f}", difference])
    return rows


def correlations(text: Runs) -> dict[str, Any]:
    """Return kind → ρ as a mean over the seeds, and half its 95 % interval: (moments, layers, 2)."""
    found = {}
    for kind in (*KINDS, "v1, Muon"):
        table = np.array([run["own"] for run in text[kind]])  # (seeds, moments, layers)
        found[kind] = np.array([[mean_and_interval(list(x)) for x in at.T] for at in table.swapaxes(0, 1)])
    return found


def correlation_rows(stored: Mapping[str, Any]) -> list[list[str]]:
    """Return ρ by layer at some moments as rows of a table."""
    found = correlations(text_runs(stored))
    rows = [["mean ρ", *(f"layer {layer}" for layer in range(stored["model"]["layers"]))]]
    for step in (0, 100, 400):
        at = stored["moments"].index(step)
        rows += [[f"{kind}, step {step}", *(written((x[0], x[1]), 2) for x in by[at])] for kind, by in found.items()]
    return rows


def text_size_line(stored: Mapping[str, Any]) -> str:
    """Say how large the text models are, and how much they read."""
    parameters = text_runs(stored)["v1"][0]["parameters"]
    return f"each model: {parameters:,} parameters for v1, {tokens_read(stored):,} tokens read"


def tokens_read(stored: Mapping[str, Any]) -> int:
    """Return how many tokens a run of the second experiment read."""
    return math.prod(stored["settings"][name] for name in ("max_steps", "batch_size", "context"))


def long_runs() -> tuple[int, int, dict[str, float], float]:
    """Return of the longer runs: tokens, parameters, loss by kind, what a repetition changed."""
    runs = json.loads((DATA / "baseline.json").read_text(encoding="utf-8"))
    repeated = (DATA / "bundled_by_torch.jsonl").read_text(encoding="utf-8").splitlines()
    changed = max(abs(run["refdiff"] - run["torch"]) for run in map(json.loads, repeated))
    reached = {kind: runs[name]["validation"][-1][1] for kind, name in (("plain", "plain"), ("v1", "differential"))}
    return runs["tokens"], runs["differential"]["parameters"], reached, changed


def long_run_lines() -> list[str]:
    """Return `long_runs` as text."""
    tokens, size, reached, changed = long_runs()
    return [
        f"{tokens:,} tokens read, {size:,} parameters",
        *(f"{kind:5} loss {loss:.3f} nats per token" for kind, loss in reached.items()),
        f"the same run repeated in torch differs by up to {changed:.3f}",
    ]  # fmt: skip
