"""Does differential attention put less attention on noise? Key retrieval at a size that a laptop trains.

    haystack   · · k₃ v₃ · · · k₁ v₁ · k₂ v₂ · ·      needles (a key, then its value) between fillers
    questions  k₂ k₁ ·                                keys again: at each, its value must be predicted

A model sees a key a second time and must predict the value that followed it the first time. A sequence shows no answer:
where answers are shown, a model learns to leave out the values that were predicted before, and never looks for the key.

Differential and plain models of one size are trained from the same seeds on the same sequences. A model finds a value
when one layer copies the key to the value after it, and a later layer attends to it. Either is useless without the
other, and both kinds of model predict any value of the sequence for a long time. So training begins with short
sequences that have a second task: at each value, predict the key before it. It continues without that task, on all
lengths. The longer a sequence, the more needles it has: what a model learned on short ones still helps it on long ones,
with more noise.

Measured are, for sequences of every length, how often the answer is correct, and which share of a question's attention
goes to its needle and which to noise, that is, to fillers and the other needles. A needle is its key, its value, and
the token after them, in which a model with spare heads gathers both. Needles stand at five depths of the haystack, as
in table 3 of Ye et al. 2024. The paper does not say how it normalizes, or how it joins heads and layers, and a row of
A₁ − λ A₂ has weights below 0 and sums to 1 − λ. So there are two measures, the same for plain attention:

    share      Σ over the group of |weight| / Σ over the row of |weight|, for each head; the mean over heads and layers
    net share  with signs, Σ over heads, layers and the group / Σ over heads, layers and the row: noise that one head
               adds and another takes away counts as none

    python notebooks/experiments/retrieval.py -o retrieval.json
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

sys.path[:0] = [str(folder) for folder in Path(__file__).resolve().parents[1:3]]

from experiments.retrieval_table import DEPTHS, WIRINGS, depth_table, table

from refdiff.backends import overlay
from refdiff.browser import require_processes
from refdiff.files import read_json, write_json
from refdiff.model.config import DiffLlamaConfig
from refdiff.model.heads import DiffLlamaForCausalLM
from refdiff.model.weights import flatten, nest
from refdiff.training.muon import Muon
from refdiff.training.schedule import clip, learning_rate

IGNORED = -100
CONTROL_SEEDS = 3
"""Seeds of a control. It is to show whether the look-up is found at all."""
RunFunction = Callable[["Experiment", str, int, "int | None"], dict[str, Any]]


@dataclass(frozen=True)
class Experiment:
    """The settings of an experiment: model, task and training.

    keys, values, fillers (tokens of each kind); spacing (tokens of a sequence for each of its needles); questions (of a
    sequence, or as many as it has needles); train_lengths (tokens of a training sequence, from the shortest); lengths
    (of the sequences measured); width, layers, heads; steps, and how many of them begin with the shortest sequences and
    keys as targets too, before all lengths take turns; tokens (of a step); rate; rows (sequences measured of each
    length).
    """

    keys: int = 512
    values: int = 64
    fillers: int = 16
    spacing: int = 4
    questions: int = 16
    train_lengths: tuple[int, ...] = (8, 16, 32, 64, 128, 256)
    lengths: tuple[int, ...] = (8, 16, 32, 64, 128, 256, 512)
    width: int = 64
    layers: int = 2
    heads: int = 2
    steps: int = 2000
    begin: int = 1000
    tokens: int = 2048
    rate: float = 1e-2
    rows: int = 256

    def __post_init__(self) -> None:
        if self.questions < 1:
            raise ValueError(f"questions: got {self.questions}, expected 1 or more")
        for length in (*self.train_lengths, *self.lengths):
            needles, questions = self.counts(length)
            shortest = 2 * max(needles, 1) + max(questions, 1) + 1
            if length < shortest or needles > self.keys:
                raise ValueError(
                    f"a sequence of {length} tokens with spacing {self.spacing} has {needles} needles, but must have "
                    f"from 1 to {self.keys}, one for each key, and {shortest} tokens or more for needles and questions"
                )
        longest = max(self.train_lengths)
        if self.tokens < longest:
            raise ValueError(f"tokens: got {self.tokens} for a step, expected at least {longest}, the longest sequence")

    def counts(self, length: int) -> tuple[int, int]:
        """Return how many needles and questions a sequence has."""
        needles = length // self.spacing
        return needles, min(self.questions, needles)

    def config(self, wiring: str) -> DiffLlamaConfig:
        """Return the model's config, with the same sizes for every attention variant.

        v2 has twice the queries and a projection for λ; its MLP is narrower by as many parameters.
        """
        extra = round((self.width + self.heads) / 3) if wiring == "v2" else 0
        return DiffLlamaConfig(
            wiring=wiring,
            vocab_size=self.keys + self.values + self.fillers,
            hidden_size=self.width,
            intermediate_size=2 * self.width - extra,
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

    @property
    def longest(self) -> int:
        """The longest measured length of at most that of training, or else the shortest measured."""
        return max((n for n in self.lengths if n <= max(self.train_lengths)), default=min(self.lengths))

    def rate_at(self, step: int) -> float:
        """Return the learning rate: constant after a warm-up while sequences are short, then a cosine decay."""
        if step < self.begin:
            return learning_rate(step, peak=self.rate, steps=self.steps, warmup=50, schedule="constant")
        return learning_rate(step - self.begin, peak=self.rate, steps=self.steps - self.begin, warmup=0)


QUICK = Experiment(
    keys=16, values=16, questions=4, train_lengths=(16, 32), lengths=(16, 32, 64), heads=4, steps=400, begin=250,
    tokens=1024, rows=64,
)  # fmt: skip
"""Under a minute for each kind: shows how it goes, and decides nothing. v2 does not learn it in so few steps."""


@dataclass(frozen=True)
class RetrievalBatch:
    """N sequences of the task, each of a haystack and R questions.

    ids (N, T); labels (N, T), −100 except after a question, where its answer is due; question and needle (N, R), the
    positions of a question and of the key that it repeats; haystack, the number of tokens before the questions.
    """

    ids: NDArray[np.int64]
    labels: NDArray[np.int64]
    question: NDArray[np.int64]
    needle: NDArray[np.int64]
    haystack: int


def draw_sequences(
    experiment: Experiment, count: int, length: int, rng: np.random.Generator, *, keys_too: bool = False
) -> RetrievalBatch:
    """Draw sequences: keys differ within one, needles do not overlap, and a question repeats the key of one needle.

    The last token is a filler: the label of a question stands behind it. With `keys_too` there is also a label behind
    every needle: its key.
    """
    x, (N, R) = experiment, experiment.counts(length)
    haystack = length - R - 1
    ids = rng.integers(x.keys + x.values, x.keys + x.values + x.fillers, (count, length))
    keys = rng.random((count, x.keys)).argsort(axis=1)[:, :N]
    values = rng.integers(x.keys, x.keys + x.values, (count, N))
    # N places out of those that are left when each needle's second token is taken out
    starts = np.sort(rng.random((count, haystack - N)).argsort(axis=1)[:, :N], axis=1) + np.arange(N)
    row = np.arange(count)[:, None]
    ids[row, starts], ids[row, starts + 1] = keys, values
    chosen = rng.random((count, N)).argsort(axis=1)[:, :R]
    question = np.broadcast_to(haystack + np.arange(R), (count, R))
    ids[row, question] = keys[row, chosen]
    labels = np.full_like(ids, IGNORED)
    labels[row, question + 1] = values[row, chosen]
    if keys_too:
        labels[row, starts + 2] = keys
    return RetrievalBatch(ids, labels, question, starts[row, chosen], haystack)


def zero_lambda(name: str, function: Any) -> Any:
    """Wrap the layers that compute λ: it is 0, and so are its gradients."""
    if name in ("diff_lambda", "diff_lambda_v2"):
        return lambda *args, **kwargs: 0 * function(*args, **kwargs)
    if name in ("diff_lambda_vjp", "diff_lambda_v2_vjp"):
        return lambda *args, **kwargs: tuple(0 * g for g in function(*args, **kwargs))
    return function


def train(
    experiment: Experiment, wiring: str, seed: int, *, second_map: bool = True, threads: int | None = None,
    report: Callable[[int, float], None] = lambda step, loss: None,
) -> DiffLlamaForCausalLM:  # fmt: skip
    """Train one model, and call `report(step, loss)`. Its data depend on the seed alone.

    Without `second_map`, λ is 0; all else stays.
    """
    x, rng = experiment, np.random.default_rng((seed, 0))
    model = DiffLlamaForCausalLM.from_config(x.config(wiring), seed, threads=threads)
    if not second_map:
        model.ops = overlay(model.ops, zero_lambda)
    params = {name: np.array(a, order="C") for name, a in flatten(model.params).items()}
    model.params = nest(params)
    optimizer = Muon(params, weight_decay=0.01)
    for step in range(x.steps):
        begins = step < x.begin
        length = x.train_lengths[0 if begins else step % len(x.train_lengths)]
        drawn = draw_sequences(x, x.tokens // length, length, rng, keys_too=begins)
        loss, grads = model.loss_and_grad(drawn.ids, labels=drawn.labels)
        clipped, _ = clip(flatten(grads), 1.0)
        optimizer.step(clipped, x.rate_at(step))
        report(step + 1, float(loss))
    return model


def measure(experiment: Experiment, model: DiffLlamaForCausalLM, length: int, seed: int = 0) -> dict[str, Any]:
    """Measure `rows` sequences that training does not draw.

    Returns accuracy; the shares "answer", of the question's needle, and "noise", of the rest of the haystack, and
    "net answer" and "net noise"; under "heads" the shares by layer and head, and "behind", the part of the answer that
    the token behind the value gets; under "depths" accuracy and shares of the needles at each of `DEPTHS`, the nearest
    of them (None where there was no needle).
    """
    x, rng = experiment, np.random.default_rng((seed, 1, length))
    found: list[NDArray[Any]] = []  # of each batch (questions, 1 depth + 1 right + layers · heads · 3 shares + 3 sums)
    batch = max(x.tokens // length, 1)
    for start in range(0, x.rows, batch):
        drawn = draw_sequences(x, min(batch, x.rows - start), length, rng)
        out = model(drawn.ids, output_attentions=True, use_cache=False)
        row = np.arange(len(drawn.ids))[:, None]
        right = np.asarray(out.logits)[row, drawn.question].argmax(axis=-1) == drawn.labels[row, drawn.question + 1]
        depth = np.rint(drawn.needle / (drawn.haystack - 2) * (len(DEPTHS) - 1)) if drawn.haystack > 2 else drawn.needle
        by_layer = [_attention(maps, drawn) for maps in out.differential_attentions or ()]
        net = sum(signed for _, signed in by_layer)
        columns = [depth[..., None], right[..., None], *(shares for shares, _ in by_layer), net]
        found.append(np.concatenate(columns, axis=-1).reshape(drawn.question.size, -1))
    depth, right, *columns = np.concatenate(found).T
    shares = np.array(columns[:-3]).reshape(x.layers, -1, 3, len(depth))
    net_answer, net_noise, net_all = (float(c.sum()) for c in columns[-3:])
    groups = [depth == i for i in range(len(DEPTHS))]
    answer, noise, _ = shares.mean(axis=(0, 1))
    return {
        "accuracy": float(right.mean()),
        "answer": float(answer.mean()),
        "noise": float(noise.mean()),
        "net answer": net_answer / net_all,
        "net noise": net_noise / net_all,
        "heads": {name: shares[:, :, i].mean(axis=-1).tolist() for i, name in enumerate(("answer", "noise", "behind"))},
        "depths": {
            name: [float(values[group].mean()) if group.any() else None for group in groups]
            for name, values in (("accuracy", right), ("answer", answer), ("noise", noise))
        },
    }


def _attention(maps: NDArray[Any], drawn: RetrievalBatch) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return the weights of the questions in one layer's maps (N, heads, T, T).

    The first are the shares of answer, noise, and the token behind the value, by head (N, R, heads · 3). The second
    have signs and are summed over heads: answer, noise, and all (N, R, 3).
    """
    row, number = np.arange(len(maps))[:, None], np.arange(drawn.question.shape[1])
    given = maps[row, :, drawn.question].astype(np.float64)  # (N, R, heads, T)

    def groups(weights: NDArray[Any]) -> list[NDArray[Any]]:
        key, value, behind = (weights[row, number, ..., drawn.needle + i] for i in range(3))
        inside = (drawn.needle + 2 < drawn.haystack).reshape(*drawn.needle.shape, *(1,) * (behind.ndim - 2))
        behind = np.where(inside, behind, 0)
        answer = key + value + behind
        return [answer, weights[..., : drawn.haystack].sum(axis=-1) - answer, behind]

    size = np.abs(given)
    shares = np.stack(groups(size / size.sum(axis=-1, keepdims=True)), axis=-1)
    net = given.sum(axis=2)
    return shares.reshape(*drawn.question.shape, -1), np.stack([*groups(net)[:2], net.sum(axis=-1)], axis=-1)


def run(experiment: Experiment, wiring: str, seed: int, threads: int | None = None) -> dict[str, Any]:
    """Train one model, with progress on standard error, and measure it at every length."""
    model, losses = _train_and_report(experiment, wiring, seed, threads)
    curve = [round(loss, 5) for loss in losses[:: max(experiment.steps // 100, 1)]]
    measured = {str(length): measure(experiment, model, length, seed) for length in experiment.lengths}
    return {"wiring": wiring, "seed": seed, "parameters": model.num_parameters(), "losses": curve, "measured": measured}


def run_control(experiment: Experiment, wiring: str, seed: int, threads: int | None = None) -> dict[str, Any]:
    """Train one model with λ = 0 on the short sequences of the beginning, with progress on standard error."""
    start = replace(experiment, steps=experiment.begin)  # the same sequences and rates: the rate is constant there
    _, losses = _train_and_report(start, wiring, seed, threads, second_map=False)
    curve = [round(loss, 5) for loss in losses[:: max(experiment.steps // 100, 1)]]
    return {"wiring": wiring, "seed": seed, "losses": curve}


def _train_and_report(
    experiment: Experiment, wiring: str, seed: int, threads: int | None, *, second_map: bool = True
) -> tuple[DiffLlamaForCausalLM, list[float]]:
    """Return a trained model and the loss of every step."""
    losses: list[float] = []
    started, name = time.monotonic(), wiring if second_map else f"{wiring} with λ = 0"

    def report(step: int, loss: float) -> None:
        losses.append(loss)
        if step % 200 == 0 or step == experiment.steps:
            left = (time.monotonic() - started) / step * (experiment.steps - step)
            mean = sum(losses[-50:]) / len(losses[-50:])
            sys.stderr.write(
                f"{name} seed {seed}: step {step} of {experiment.steps}, loss {mean:.3f}, {left:.0f} s left\n"
            )

    return train(experiment, wiring, seed, second_map=second_map, threads=threads, report=report), losses


def main(argv: Sequence[str] | None = None) -> int:
    """Train and measure the models that the file lacks, write it after each, and print the tables."""
    parser = argparse.ArgumentParser(
        "python notebooks/experiments/retrieval.py",
        description="Train differential and plain models on key retrieval; where does their attention go?",
    )
    parser.add_argument("-o", "--output", type=Path, required=True, help="JSON file; what is in it is not run again")
    parser.add_argument("--seeds", type=int, help="models of each attention variant (default: 5; with --quick 1)")
    parser.add_argument("--steps", type=int, help=f"training steps (default: {Experiment().steps})")
    parser.add_argument("--jobs", type=int, default=1, help="models at a time, each in a process (default: 1)")
    parser.add_argument("--threads", type=int, default=1, help="processor threads of a model (default: 1)")
    parser.add_argument("--controls", action="store_true", help="also train three seeds with λ = 0 (default: off)")
    parser.add_argument("--quick", action="store_true", help="short sequences, few steps, one seed: to see it work")
    args = parser.parse_args(argv)
    experiment = QUICK if args.quick else Experiment()
    if args.steps:
        experiment = replace(experiment, steps=args.steps, begin=experiment.begin * args.steps // experiment.steps)
    about = json.loads(json.dumps(asdict(experiment)))
    results: dict[str, list[dict[str, Any]]] = {"runs": [], "controls": []}
    if args.output.exists():
        found = read_json(args.output)
        if found.get("experiment") != about:
            parser.error(f"{args.output} is of another experiment: {found.get('experiment')}")
        results |= {name: found[name] for name in results if name in found}
    seeds = range(args.seeds or (1 if args.quick else 5))
    tasks: list[tuple[str, RunFunction, Sequence[str], Sequence[int]]] = [("runs", run, WIRINGS, seeds)]
    if args.controls:
        differential = [wiring for wiring in WIRINGS if wiring != "none"]
        tasks.append(("controls", run_control, differential, seeds[:CONTROL_SEEDS]))
    for name, one, wirings, chosen in tasks:
        done = {(r["wiring"], r["seed"]) for r in results[name]}
        missing = [(wiring, seed) for seed in chosen for wiring in wirings if (wiring, seed) not in done]
        for result in _results(one, experiment, missing, args.jobs, args.threads):
            results[name] = sorted([*results[name], result], key=lambda r: (r["seed"], r["wiring"]))
            write_json(args.output, {"experiment": about} | {n: r for n, r in results.items() if r})
    runs = results["runs"]
    sys.stdout.write(f"{table(runs)}\n\n{depth_table(runs, experiment.longest)}\n")
    return 0


def _results(
    one: RunFunction, experiment: Experiment, missing: Iterable[tuple[str, int]], jobs: int, threads: int
) -> Iterator[dict[str, Any]]:
    """Yield the results of the runs, one by one or `jobs` at a time; the numbers are the same."""
    if jobs == 1:
        yield from (one(experiment, wiring, seed, threads) for wiring, seed in missing)
        return
    require_processes("--jobs above 1")
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor, as_completed

    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn")) as pool:
        futures = [pool.submit(one, experiment, wiring, seed, threads) for wiring, seed in missing]
        yield from (future.result() for future in as_completed(futures))


if __name__ == "__main__":
    sys.exit(main())
