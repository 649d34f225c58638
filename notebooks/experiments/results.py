"""What the stored runs of both experiments of chapter 05 came to: by kind, and the main measures at a glance."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
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
    """Return measure → kind → one number for each seed; an arrow points to the better side."""

    found = {kind: [run["measured"]["64"]["accuracy"] for run in mine] for kind, mine in runs.items()}
    names = {f"{kind}, AdamW": kind for kind in KINDS} | {f"{kind}, Muon": f"{kind}, Muon" for kind in ("plain", "v1")}
    losses = {shown: [run["validation"][-1][1] for run in text[name]] for shown, name in names.items()}
    return {"numbers found in 64 tokens →": found, "loss on text ←": losses}


def summary_lines(runs: Runs, text: Runs) -> list[str]:
    """Return the means of `summary` as text."""
    return [
        f"{measure}: " + "; ".join(f"{kind}: {np.mean(values):.3g}" for kind, values in by_kind.items())
        for measure, by_kind in summary(runs, text).items()
    ]


def sizes(stored: Mapping[str, Any]) -> dict[str, tuple[int, int, int, int]]:
    """Return of each kind of the first experiment its query heads, results, width of SwiGLU, and parameters."""
    found = {}
    for kind, mine in retrieval_runs(stored).items():
        config = _experiment(stored).config(KINDS[kind])
        heads = config.num_attention_heads * (2 if kind == "v2" else 1)
        results = heads if kind == "plain" else heads // 2
        found[kind] = heads, results, config.intermediate_size, mine[0]["parameters"]
    return found


def size_lines(stored: Mapping[str, Any]) -> list[str]:
    """Return `sizes` as text."""
    return [
        f"{kind}: {heads} query heads, {results} results, SwiGLU {width}, {parameters:,} parameters"
        for kind, (heads, results, width, parameters) in sizes(stored).items()
    ]


def _experiment(stored: Mapping[str, Any]) -> Experiment:
    settings = stored["experiment"].items()
    return Experiment(**{name: tuple(value) if isinstance(value, list) else value for name, value in settings})


def controls(stored: Mapping[str, Any]) -> dict[str, list[int | None]]:
    """Return the step at which each run with λ = 0 learned the look-up, or None."""
    found = retrieval_runs(stored, "controls")
    return {kind: [run["learned_at"] for run in found[kind]] for kind in ("v1", "v2")}


def learned_lines(stored: Mapping[str, Any]) -> list[str]:
    """Say at which step each run learned the look-up."""
    limit = stored["experiment"]["begin"]
    learned = {kind: [run["learned_at"] for run in mine] for kind, mine in retrieval_runs(stored).items()}
    lines = [f"{kind:9} learned at step {steps}" for kind, steps in learned.items()]
    return lines + [
        f"{kind}, λ = 0 learned at step {steps} (None: not within {limit:,} steps)"
        for kind, steps in controls(stored).items()
    ]


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


def minus_plain(runs: Runs, what: str) -> dict[str, dict[str, tuple[float, float]]]:
    """Return kind → tokens of a sequence → kind − plain by seed: a mean, and half its 95 % interval."""

    def values(kind: str, n: str) -> Any:
        return np.array([run["measured"][n][what] for run in runs[kind]])

    return {kind: {n: mean_and_interval(list(values(kind, n) - values("plain", n))) for n in _lengths(runs)}
            for kind in ("v1", "v2")}  # fmt: skip


def difference_lines(runs: Runs) -> list[str]:
    """Return `minus_plain` of both measures as a table; a star marks an interval that excludes 0."""
    lines = []
    for what, title in (("accuracy", "numbers found"), ("noise", "attention to noise")):
        found = minus_plain(runs, what)
        lines += [f"{title}, in percentage points", "tokens    " + "".join(f"{n:>9} " for n in found["v1"])]
        for kind, by_length in found.items():
            cells = [
                f"{100 * mean:+.0f} ± {100 * half:.0f}{'*' if abs(mean) > half else ' '}"
                for mean, half in by_length.values()
            ]
            lines.append(f"{kind} − plain" + "".join(f"{cell:>10}" for cell in cells))
    return lines


def last_layer(runs: Runs, length: str) -> dict[str, dict[str, float]]:
    """Return kind → which share of the last layer's attention goes to the answer, to noise, and to the rest."""
    found = {}
    for kind, mine in runs.items():
        heads = [run["measured"][length]["heads"] for run in mine]
        parts = {what: float(np.mean([run[what][-1] for run in heads])) for what in ("answer", "noise")}
        found[kind] = parts | {"the rest": 1 - sum(parts.values())}
    return found


def share_lines(runs: Runs, length: str) -> list[str]:
    """Return `last_layer` as text, and how much more than the plain model the others give, with 95 % intervals."""
    lines = [
        f"{kind}: " + ", ".join(f"{what} {100 * share:.1f} %" for what, share in parts.items())
        for kind, parts in last_layer(runs, length).items()
    ]
    for kind in ("v1", "v2"):
        said = []
        for what in ("answer", "noise"):
            mine, plain = (
                [float(np.mean(run["measured"][length]["heads"][what][-1])) for run in runs[name]]
                for name in (kind, "plain")
            )
            mean, half = mean_and_interval([a - b for a, b in zip(mine, plain, strict=True)])
            said.append(f"{what} {100 * mean:+.0f} ± {100 * half:.0f}")
        lines.append(f"{kind} − plain, points: {', '.join(said)}")
    return lines


def losses_by_step(text: Runs) -> dict[str, dict[int, tuple[float, float]]]:
    """Return kind → step → validation loss: a mean, and half its 95 % interval."""
    found = {}
    for kind in ("plain", "v1", "v2", "v1, no norm"):
        by_step = zip(*(run["validation"] for run in text[kind]), strict=True)
        found[kind] = {at[0][0]: mean_and_interval([loss for _, loss in at]) for at in by_step}
    return found


def text_differences(text: Runs) -> list[tuple[str, str, float, float]]:
    """Return kind, another, and the difference of their last losses by seed: a mean, and half its 95 % interval."""
    last = {kind: [run["validation"][-1][1] for run in mine] for kind, mine in text.items()}
    others = dict.fromkeys(("v1", "v2", "v1, slow", "v1, no norm"), "plain") | {"v1, Muon": "plain, Muon"}
    return [
        (kind, other, *mean_and_interval([a - b for a, b in zip(last[kind], last[other], strict=False)]))
        for kind, other in others.items()
    ]


def loss_lines(text: Runs) -> list[str]:
    """Return the last losses of all kinds, and `text_differences`, as text."""
    lines = ["loss at the end, nats per token"]
    for kind, mine in text.items():
        mean, half = mean_and_interval([run["validation"][-1][1] for run in mine])
        about = f"rate {mine[0]['rate']}, {len(mine)} seeds"
        lines.append(f"{kind:11} {mean:.2f} ± {half:.2f} ({about})")
    for kind, other, mean, half in text_differences(text):
        lines.append(f"{kind:11} − {other:11} {mean:+.2f} ± {half:.2f} {'better' if mean < 0 else 'worse'}")
    return lines


def correlations(text: Runs) -> dict[str, Any]:
    """Return kind → ρ as a mean over the seeds, and half its 95 % interval: (moments, layers, 2)."""
    found = {}
    for kind in KINDS:
        table = np.array([run["own"] for run in text[kind]])  # (seeds, moments, layers)
        found[kind] = np.array([[mean_and_interval(list(x)) for x in at.T] for at in table.swapaxes(0, 1)])
    return found


def correlation_lines(stored: Mapping[str, Any]) -> list[str]:
    """Return mean ρ by layer at some moments, and how large the models are, as text."""
    text, lines = text_runs(stored), ["mean ρ by layer"]
    for kind, found in correlations(text).items():
        at = [f"at step {step} {found[stored['moments'].index(step), :, 0].round(2)}" for step in (100, 400)]
        lines.append(f"{kind:6}{', '.join(at)}")
    first = max(float(abs(found[0, :, 0]).max()) for found in correlations(text).values())
    lines.append(f"largest mean |ρ| at step 0: {first:.2f}")
    about = f"{text['v1'][0]['parameters']:,} parameters, {tokens_read(stored):,} tokens read"
    return [*lines, f"these models: {about}"]


def tokens_read(stored: Mapping[str, Any]) -> int:
    """Return how many tokens a run of the second experiment read."""
    return math.prod(stored["settings"][name] for name in ("max_steps", "batch_size", "context"))


def long_runs() -> tuple[int, int, dict[str, tuple[float, float]], float]:
    """Return of the longer runs: tokens, parameters, loss and bits per byte by kind, what a repetition changed."""
    runs = json.loads((DATA / "baseline.json").read_text(encoding="utf-8"))
    repeated = (DATA / "bundled_by_torch.jsonl").read_text(encoding="utf-8").splitlines()
    changed = max(abs(run["refdiff"] - run["torch"]) for run in map(json.loads, repeated))
    reached = {
        kind: (runs[name]["validation"][-1][1], runs[name]["reached"]["bits_per_byte"])
        for kind, name in (("plain", "plain"), ("v1", "differential"))
    }
    return runs["tokens"], runs["differential"]["parameters"], reached, changed


def long_run_lines() -> list[str]:
    """Return `long_runs` as text."""
    tokens, size, reached, changed = long_runs()
    return [
        f"{tokens:,} tokens read, {size:,} parameters",
        *(f"{kind:5} loss {loss:.3f} nats per token, {round(bits, 3)} bits per byte"
          for kind, (loss, bits) in reached.items()),
        f"the same run repeated in torch differs by up to {changed:.3f}",
    ]  # fmt: skip
