"""Does differential attention put less attention on noise? Key retrieval at a size that a laptop trains.

    haystack   · · k₃ v₃ · · · k₁ v₁ · k₂ v₂ · ·      needles (a key, then its value) between fillers
    questions  k₂ v₂ k₁ v₁                            a key again: its value is to be said

A model sees a key a second time and must say the value that stood behind it the first time. Differential and plain
models of one size are trained from the same seeds on the same rows. Then, for rows of every length, are measured: how
often the answer is right; and what share of the attention of the asking token goes to the needle that it asks for, and
what share to noise, that is, fillers and the other needles (after table 3 of Ye et al. 2024).

A row of A₁ − λ A₂ has weights below 0 and does not sum to 1, so a share is that of |weight|, of all that a head gives
away; for plain attention that is the weight itself. Shares are means over heads and layers, as the paper drew them.

    python -m refdiff.training.retrieval -o retrieval.json
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refdiff.model.config import DiffLlamaConfig
from refdiff.model.heads import DiffLlamaForCausalLM
from refdiff.model.json_files import read_json, write_json
from refdiff.model.weights import flatten, nest
from refdiff.training.muon import Muon
from refdiff.training.schedule import clip, learning_rate

WIRINGS = ("hf", "none")
IGNORED = -100


@dataclass(frozen=True)
class Experiment:
    """What is trained, on what, and where it is measured.

    keys, values, fillers (tokens of each kind); needles, questions (of a row); train_lengths (tokens of a training
    row; one is drawn for each step); lengths (of the rows measured); width, layers, heads; steps, batch, rate; rows
    (measured of each length).
    """

    keys: int = 32
    values: int = 32
    fillers: int = 32
    needles: int = 4
    questions: int = 4
    train_lengths: tuple[int, ...] = (32, 64, 128)
    lengths: tuple[int, ...] = (32, 64, 128, 192, 256)
    width: int = 64
    layers: int = 3
    heads: int = 4
    steps: int = 2000
    batch: int = 32
    rate: float = 1e-2
    rows: int = 256

    def __post_init__(self) -> None:
        if not 1 <= self.questions <= self.needles <= self.keys:
            raise ValueError(
                f"questions are {self.questions}, needles {self.needles}, keys {self.keys}, but must be from 1 up, "
                "and none more than the next"
            )
        shortest = 2 * self.needles + 2 * self.questions
        if min(*self.train_lengths, *self.lengths) < shortest:
            raise ValueError(f"a row needs {shortest} tokens or more for its needles and questions")

    def config(self, wiring: str) -> DiffLlamaConfig:
        """The model's config, the same sizes for every wiring."""
        return DiffLlamaConfig(
            wiring=wiring,
            vocab_size=self.keys + self.values + self.fillers,
            hidden_size=self.width,
            intermediate_size=2 * self.width,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.heads,
            head_dim=self.width // self.heads,
            max_position_embeddings=max(self.lengths),
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=None,
            pad_token_id=None,
        )


@dataclass(frozen=True)
class Rows:
    """Rows of the task: ids (N, T); labels (N, T), −100 but for the answers; for each question (N, R) the position of
    the token that asks, and of the needle's key; the haystack is the first `haystack` tokens."""

    ids: NDArray[np.int64]
    labels: NDArray[np.int64]
    asking: NDArray[np.int64]
    needle: NDArray[np.int64]
    haystack: int


def draw_rows(experiment: Experiment, count: int, length: int, rng: np.random.Generator) -> Rows:
    """Draw rows: keys differ within a row, needles do not overlap, and every needle may be asked for once."""
    x, (N, R) = experiment, (experiment.needles, experiment.questions)
    haystack = length - 2 * R
    ids = rng.integers(x.keys + x.values, x.keys + x.values + x.fillers, (count, length))
    keys = rng.random((count, x.keys)).argsort(axis=1)[:, :N]
    values = rng.integers(x.keys, x.keys + x.values, (count, N))
    # N places out of those that are left when each needle's second token is taken out
    starts = np.sort(rng.random((count, haystack - N)).argsort(axis=1)[:, :N], axis=1) + np.arange(N)
    row = np.arange(count)[:, None]
    ids[row, starts], ids[row, starts + 1] = keys, values
    asked = rng.random((count, N)).argsort(axis=1)[:, :R]
    asking = np.broadcast_to(haystack + 2 * np.arange(R), (count, R))
    ids[row, asking], ids[row, asking + 1] = keys[row, asked], values[row, asked]
    labels = np.full_like(ids, IGNORED)
    labels[row, asking + 1] = values[row, asked]
    return Rows(ids, labels, asking, starts[row, asked], haystack)


def train(
    experiment: Experiment, wiring: str, seed: int, *, threads: int | None = None,
    report: Callable[[int, float], None] = lambda step, loss: None,
) -> DiffLlamaForCausalLM:  # fmt: skip
    """Train one model; `report` is told step and loss. Rows depend on the seed alone, so both wirings see the same."""
    x, rng = experiment, np.random.default_rng((seed, 0))
    model = DiffLlamaForCausalLM.from_config(x.config(wiring), seed, threads=threads)
    params = {name: np.array(a, order="C") for name, a in flatten(model.params).items()}
    model.params = nest(params)
    optimizer = Muon(params, weight_decay=0.01)
    for step in range(x.steps):
        rows = draw_rows(x, x.batch, x.train_lengths[step % len(x.train_lengths)], rng)
        loss, grads = model.loss_and_grad(rows.ids, labels=rows.labels)
        clipped, _ = clip(flatten(grads), 1.0)
        optimizer.step(clipped, learning_rate(step, peak=x.rate, steps=x.steps, warmup=x.steps // 20 + 1))
        report(step + 1, float(loss))
    return model


def measure(experiment: Experiment, model: DiffLlamaForCausalLM, length: int, seed: int = 0) -> dict[str, float]:
    """Accuracy, and the shares of attention on the needle asked for ("answer") and on the rest of the haystack
    ("noise"), over `rows` rows that training does not draw."""
    x, rng = experiment, np.random.default_rng((seed, 1, length))
    right, shares, seen = 0, np.zeros(2), 0
    for start in range(0, x.rows, x.batch):
        rows = draw_rows(x, min(x.batch, x.rows - start), length, rng)
        out = model(rows.ids, output_attentions=True, use_cache=False)
        row = np.arange(len(rows.ids))[:, None]
        said = np.asarray(out.logits)[row, rows.asking].argmax(axis=-1)
        right += int((said == rows.labels[row, rows.asking + 1]).sum())
        shares += sum(_shares(maps, rows) for maps in out.differential_attentions or ())
        seen += rows.asking.size
    answer, noise = shares / (seen * x.layers)
    return {"accuracy": right / seen, "answer": float(answer), "noise": float(noise)}


def _shares(maps: NDArray[Any], rows: Rows) -> NDArray[Any]:
    """The shares of a layer's maps (N, heads, T, T), means over heads, sums over questions."""
    row = np.arange(len(maps))[:, None]
    given = np.abs(maps[row, :, rows.asking].astype(np.float64))  # (N, R, heads, T)
    given = (given / given.sum(axis=-1, keepdims=True)).mean(axis=2)
    question = np.arange(rows.asking.shape[1])
    answer = given[row, question, rows.needle] + given[row, question, rows.needle + 1]
    return np.array([answer.sum(), given[..., : rows.haystack].sum() - answer.sum()])


T_95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)
"""Student's t of a 95 % confidence interval for 1, 2, … degrees of freedom; from 11 on the last is used, too wide."""


def mean_and_interval(numbers: Sequence[float]) -> tuple[float, float]:
    """Return the mean, and the half width of its 95 % confidence interval (not a number for one number alone)."""
    n = len(numbers)
    mean = math.fsum(numbers) / n
    if n < 2:
        return mean, math.nan
    variance = math.fsum((x - mean) ** 2 for x in numbers) / (n - 1)
    return mean, T_95[min(n - 1, len(T_95)) - 1] * math.sqrt(variance / n)


def table(runs: Sequence[dict[str, Any]]) -> str:
    """Return a line for each length and wiring: accuracy and both shares in percent, mean ± 95 % over seeds."""
    lines = [f"{'tokens':>6} {'wiring':6} {'seeds':>5} {'accuracy %':>13} {'answer %':>13} {'noise %':>13}"]
    for length in sorted({int(key) for run in runs for key in run["measured"]}):
        for wiring in WIRINGS:
            found = [run["measured"][str(length)] for run in runs if run["wiring"] == wiring]
            if found:
                pairs = [mean_and_interval([100 * f[name] for f in found]) for name in ("accuracy", "answer", "noise")]
                cells = " ".join(f"{mean:6.1f} ± {half:4.1f}" for mean, half in pairs)
                lines.append(f"{length:6} {wiring:6} {len(found):5} {cells}")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Train and measure what the file does not have yet, writing it after each model; print the table."""
    default = Experiment()
    parser = argparse.ArgumentParser(
        "python -m refdiff.training.retrieval",
        description="Train differential and plain models on key retrieval; where does their attention go?",
    )
    parser.add_argument("-o", "--output", type=Path, required=True, help="JSON file; what is in it is not run again")
    parser.add_argument("--seeds", type=int, default=5, help="models of each wiring (default: 5)")
    parser.add_argument("--steps", type=int, default=default.steps, help=f"training steps (default: {default.steps})")
    parser.add_argument("--threads", type=int, default=None, help="processor threads (default: all cores)")
    args = parser.parse_args(argv)
    experiment = Experiment(steps=args.steps)
    about = json.loads(json.dumps(asdict(experiment)))
    runs: list[dict[str, Any]] = []
    if args.output.exists():
        found = read_json(args.output)
        if found.get("experiment") != about:
            parser.error(f"{args.output} is of another experiment: {found.get('experiment')}")
        runs = found["runs"]
    for seed in range(args.seeds):
        for wiring in WIRINGS:
            if any(run["wiring"] == wiring and run["seed"] == seed for run in runs):
                continue
            losses: list[float] = []
            model = train(experiment, wiring, seed, threads=args.threads, report=_progress(wiring, seed, losses, args))
            measured = {str(length): measure(experiment, model, length, seed) for length in experiment.lengths}
            curve = [round(loss, 5) for loss in losses[:: max(args.steps // 100, 1)]]
            count = model.num_parameters()
            runs.append({"wiring": wiring, "seed": seed, "parameters": count, "losses": curve, "measured": measured})
            write_json(args.output, {"experiment": about, "runs": runs})
    sys.stdout.write(table(runs) + "\n")
    return 0


def _progress(wiring: str, seed: int, losses: list[float], args: argparse.Namespace) -> Callable[[int, float], None]:
    """Keep the losses, and say every hundred steps on standard error how far training is."""
    started = time.monotonic()

    def report(step: int, loss: float) -> None:
        losses.append(loss)
        if step % 100 == 0 or step == args.steps:
            each = (time.monotonic() - started) / step
            left = each * (args.steps - step)
            sys.stderr.write(f"{wiring} seed {seed}: step {step} of {args.steps}, loss {loss:.3f}, {left:.0f} s left\n")

    return report


if __name__ == "__main__":
    sys.exit(main())
