"""The training loop: batches → gradients → weights, with checkpoints from which it resumes bit for bit.

A step depends on its number, the seed and the weights alone. So a run that was killed and resumed has the weights of
one that was not, on one machine and with one number of threads.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from refdiff.arrays import Array, from_numpy, namespace, to_numpy
from refdiff.backends import overlay
from refdiff.checkpoint_files import checkpoints
from refdiff.errors import CheckpointError
from refdiff.model.config import DiffLlamaConfig
from refdiff.model.heads import DiffLlamaForCausalLM
from refdiff.model.variants import LAMBDA_VECTORS, VARIANTS
from refdiff.model.weights import flatten, nest
from refdiff.training import checkpoint
from refdiff.training.data import Corpus, row_order
from refdiff.training.evaluate import TrainingError, culprit, evaluate, gradient_culprit, is_finite
from refdiff.training.schedule import clip, learning_rate
from refdiff.training.settings import CHANGEABLE, OPTIMIZERS, Settings, current_names

SAMPLE_TOKENS = 60
"""The most tokens of a sample."""
VALIDATION_ROWS = 128
"""Sequences of the validation part that are evaluated during training; at its end all are."""


class Trainer:
    """A model, its optimizer and its data at some step of a run.

    Attributes:
        model: the `DiffLlamaForCausalLM`, whose weights change.
        step: the number of steps made so far.
        threads: the number of threads; 0 is all cores.
        keep: how many checkpoints stay on the disk.
        changes: the settings that were changed on resuming: {"step": …, name: [before, after]}, …
    """

    def __init__(self, out: Path, model: DiffLlamaForCausalLM, corpus: Corpus, settings: Settings) -> None:
        params = {name: _own(a) for name, a in flatten(model.params).items()}
        model.params = nest(params)
        self.out, self.model, self.corpus, self.settings = out, model, corpus, settings
        self.step = 0
        self.changes: list[dict[str, Any]] = []
        self.threads, self.keep = 0, checkpoint.KEPT
        self._params = params
        make: Any = OPTIMIZERS[settings.optimizer]
        self._optimizer = make(params, weight_decay=settings.weight_decay)
        try:
            self._rows = corpus.rows("train", settings.context)
        except ValueError as error:
            raise ValueError(str(error).replace("length:", "context:", 1)) from error
        self._running = False
        corpus.rows("validation", 2)

    @classmethod
    def start(
        cls, out: Path, config: DiffLlamaConfig, corpus: Corpus, settings: Settings, *, dtype: str = "float32",
        threads: int | None = None, backend: str | ModuleType = "numpy", device: Any = None,
    ) -> Trainer:  # fmt: skip
        """Start a run with new weights, drawn from the seed of the settings."""
        model = DiffLlamaForCausalLM.from_config(
            config, settings.seed, dtype=dtype, threads=threads, backend=backend, device=device
        )
        trainer = cls(out, model, corpus, settings)
        trainer.threads = threads or 0
        return trainer

    @classmethod
    def resume(
        cls, out: Path, *, changes: Mapping[str, Any] | None = None, threads: int | None = None,
        backend: str | ModuleType = "numpy", device: Any = None,
    ) -> Trainer:  # fmt: skip
        """Resume the last checkpoint in a folder; `changes` has new values of settings, which are recorded.

        Without `threads`, it uses as many as before; 0 is all cores.

        Raises:
            ValueError: a setting that may not change, or fewer steps than have been made.
            CheckpointError: there is no checkpoint, or it is broken.
            RuntimeError: another process or thread trains in the folder, or this is called in a `report` of `run`.
            OSError: the folder is not writable, and a setting or the log has to change.
        """
        with checkpoint.locked(out) if out.is_dir() else nullcontext():
            return cls._resume(out, changes or {}, threads, backend, device)

    @classmethod
    def _resume(
        cls, out: Path, changes: Mapping[str, Any], threads: int | None, backend: str | ModuleType, device: Any
    ) -> Trainer:
        """Resume as `resume` does, in a folder that the caller has locked."""
        changes = current_names(changes)
        if fixed := set(changes) - set(CHANGEABLE):
            raise ValueError(
                f"{', '.join(sorted(fixed))} may not change: a resumed run may change {', '.join(CHANGEABLE)}"
            )
        checkpoint.recover(out)
        folder, about = checkpoint.latest(out)
        try:
            settings = Settings(**about["settings"])
            before = [current_names(dict(change)) for change in about.get("changes", [])]
            threads = int(about.get("threads", 0)) if threads is None else threads
        except (KeyError, TypeError, ValueError) as error:
            raise checkpoint.broken(folder / "training.json", error) from None
        options: dict[str, Any] = {"threads": threads or None, "backend": backend, "device": device}
        try:
            model = DiffLlamaForCausalLM.from_pretrained(folder, **options)
        except CheckpointError as error:
            raise CheckpointError(f"{error}; delete {folder} to resume the one before") from None
        trainer = cls(out, model, Corpus(out / "corpus"), settings)
        trainer.threads, trainer.changes = threads, before
        trainer.step = about["step"]
        state = {n: from_numpy(a, model.xp, device) for n, a in checkpoint.optimizer_state(folder).items()}
        try:
            trainer._optimizer.restore(state, trainer.step)
        except (KeyError, ValueError) as error:
            raise checkpoint.broken(folder / "optimizer.safetensors", error) from None
        checkpoint.truncate_log(out, trainer.step)
        trainer._change(changes, folder)
        return trainer

    def run(
        self, report: Callable[[dict[str, Any]], None] = lambda record: None, stop: Callable[[], bool] = lambda: False
    ) -> Path:
        """Make all steps that are left, and return the folder of the last checkpoint.

        `stop` is called after each step. When it returns True, a checkpoint is saved and the run returns. Nothing is
        written before the gradient of the first step is known to be finite.

        `report` receives a record for each step: step, loss, rate, gradient (its norm before clipping), λ by layer as
        lambdas (v2: means, with validation), tokens_per_second. Some records also have validation (nats per token),
        bits_per_byte, sample and checkpoint.

        Raises:
            TrainingError: the loss or a gradient is not finite; the message has the step, the layer, and the checkpoint
                to resume.
            OSError: the disk is full; the last checkpoint is still there.
            RuntimeError: another process or thread trains in the folder.
        """
        with checkpoint.locked(self.out):
            return self._run(report, stop)

    def _run(self, report: Callable[[dict[str, Any]], None], stop: Callable[[], bool]) -> Path:
        """Run as `run` does, in a folder that the caller has locked."""
        self._running = True
        try:
            with self.model.backend.repeated_scope():
                return self._make_steps(report, stop)
        except TrainingError as error:
            saved = checkpoints(self.out)
            failed = saved.pop()[1] if saved and saved[-1][0] == self.step else None
            usable = saved[-1][1] if saved else None  # steps have been made from it
            raise TrainingError(f"{error}; {_advice(failed, usable)}") from None
        finally:
            self._running = False

    def _make_steps(self, report: Callable[[dict[str, Any]], None], stop: Callable[[], bool]) -> Path:
        s, stopping = self.settings, False
        while self.step < s.max_steps and not stopping:
            started = time.perf_counter()
            record = self._one_step()
            record["tokens_per_second"] = round(s.batch_size * (s.context - 1) / (time.perf_counter() - started), 1)
            at_end, stopping = self.step == s.max_steps, stop()
            if at_end or (s.evaluate_every and self.step % s.evaluate_every == 0):
                record |= self.evaluate(None if at_end else VALIDATION_ROWS)
            if at_end or (s.sample_every and self.step % s.sample_every == 0):
                record["sample"] = self.sample()
            due = at_end or stopping or (s.save_every and self.step % s.save_every == 0)
            if due:
                record["checkpoint"] = checkpoint.name(self.step)
            checkpoint.log(self.out, record)  # before the checkpoint: killed between them, the step is made again
            if due:
                self._save()
            report(record)
        last = self.out / checkpoint.name(self.step)
        return last if last.exists() else self._save()

    def save(self) -> Path:
        """Write a checkpoint, unless a weight is not finite.

        Raises:
            TrainingError: a weight is not finite.
            OSError: the disk is full; the last checkpoint is still there.
            RuntimeError: as `run`.
        """
        with nullcontext() if self._running else checkpoint.locked(self.out):
            return self._save()

    def _save(self) -> Path:
        for name, p in self._params.items():
            if not is_finite(p):
                raise TrainingError(f"step {self.step}: {name} is not finite, so no checkpoint is written")
        state = {name: to_numpy(a) for name, a in self._optimizer.state().items()}
        return checkpoint.save(self.out, self.step, self.model, state, self._about(), self.corpus.folder, self.keep)

    def _about(self) -> dict[str, Any]:
        about = {"settings": asdict(self.settings), "threads": self.threads}
        return about | ({"changes": self.changes} if self.changes else {})

    def _change(self, changes: Mapping[str, Any], folder: Path) -> None:
        """Change settings, and write them to the checkpoint at once: this run may be killed before its next one."""
        before = asdict(self.settings)
        others = {name: value for name, value in changes.items() if value != before[name]}
        if not others:
            return
        self.settings = replace(self.settings, **others)
        if self.settings.max_steps < self.step:
            raise ValueError(
                f"max_steps: got {self.settings.max_steps}, expected {self.step} or more, the steps already made"
            )
        self.changes = [*self.changes, {"step": self.step, **{n: [before[n], value] for n, value in others.items()}}]
        checkpoint.update_description(folder, self.step, self._about())

    def evaluate(self, most: int | None = None) -> dict[str, Any]:
        """Call `evaluate` for this model, corpus, context and batch; in v2 add the mean λ of every layer as lambdas.

        Raises:
            TrainingError: the loss is not finite; the message has the step and the layer.
        """
        means: list[tuple[float, int]] = []

        def wrap(name: str, function: Any) -> Any:
            def measured(*args: Any, **kwargs: Any) -> Any:
                result = function(*args, **kwargs)
                means.append((float(namespace(result).mean(result)), result.size))
                return result

            return measured if name == "diff_lambda_v2" else function

        model, settings, ops = self.model, self.settings, self.model.ops
        if VARIANTS[model.config.variant].lambda_by_token:
            model.ops = overlay(ops, wrap)
        try:
            with np.errstate(all="ignore"):  # `evaluate` looks for numbers that are not finite
                result: dict[str, Any] = evaluate(model, self.corpus, settings.context, settings.batch_size, most)
        except TrainingError as error:
            raise TrainingError(f"step {self.step}: {error}") from None
        finally:
            model.ops = ops
        layers = model.config.num_hidden_layers
        lambdas = [round(_mean(means[layer::layers]), 6) for layer in range(layers) if means]
        return result | ({"lambdas": lambdas} if lambdas else {})

    def sample(self) -> str:
        """Continue the prompt with random tokens, whose seed is the step.

        Raises:
            TrainingError: no token can be chosen by the scores; the message has the step and the layer.
        """
        from refdiff.generation.tokenizer import Tokenizer

        tokenizer = Tokenizer.from_pretrained(self.corpus.folder)
        ids = tokenizer(self.settings.prompt, return_tensors="np")["input_ids"]
        free = max(self.settings.context - ids.shape[1], 1)
        options: dict[str, Any] = {"do_sample": True, "seed": self.step, "eos_token_id": self.corpus.separator}
        try:
            with np.errstate(all="ignore"):
                made = self.model.generate(ids, max_new_tokens=min(SAMPLE_TOKENS, free), **options)
        except ValueError as error:
            self.evaluate(VALIDATION_ROWS)  # its error names the layer
            raise TrainingError(f"step {self.step}: no sample can be made: {error}") from None
        text: str = tokenizer.decode(made[0], skip_special_tokens=True)
        return text

    def _one_step(self) -> dict[str, Any]:
        s, losses = self.settings, []
        grads: dict[str, Array] = {}
        rows = row_order(self._rows, s.seed, self.step * s.batch_size, s.batch_size)
        with np.errstate(all="ignore"):  # numbers that are not finite are found below
            for part in np.split(rows, s.accumulate):
                ids, positions = self.corpus.batch("train", part, s.context)
                loss, part_grads = self.model.loss_and_grad(ids, position_ids=positions, labels=ids)
                losses.append(float(loss))
                for name, g in flatten(part_grads).items():
                    share = g if s.accumulate == 1 else g * (1 / s.accumulate)
                    grads[name] = grads[name] + share if name in grads else share
                if not math.isfinite(losses[-1]):
                    where = culprit(self.model, ids, positions)
                    raise TrainingError(f"step {self.step + 1}: the loss is {losses[-1]}, {where}")
            clipped, norm = clip(grads, s.grad_clip)
            if not math.isfinite(norm):
                where = gradient_culprit(grads, self.model.config.num_hidden_layers)  # clipped, all are NaN
                raise TrainingError(f"step {self.step + 1}: the gradient is not finite, {where}")
            if self.step == 0:
                self._save()
            rate = learning_rate(
                self.step, peak=s.learning_rate, steps=s.max_steps, warmup=s.warmup_steps, schedule=s.schedule
            )
            with self.model.backend.inference_scope():
                self._optimizer.step(clipped, rate, each=self.model.backend.map)
        self.step += 1
        record = {"step": self.step, "loss": sum(losses) / len(losses), "rate": rate, "gradient": norm}
        return record | ({"lambdas": lambdas} if (lambdas := self._lambdas()) else {})

    def _lambdas(self) -> list[float]:
        """Return λ of every layer, where it is one number per layer."""
        layers, ops = self.model.base_params["layers"], self.model.ops
        if LAMBDA_VECTORS[0] not in layers[0]["self_attn"]:
            return []
        vectors = ([layer["self_attn"][name] for name in LAMBDA_VECTORS] for layer in layers)
        with np.errstate(all="ignore"):
            lambdas = [round(float(ops.diff_lambda(*four, ops.lambda_init(i))), 6) for i, four in enumerate(vectors)]
        for i, value in enumerate(lambdas):
            if not math.isfinite(value):
                raise TrainingError(f"step {self.step}: λ of layer {i} is {value}")
        return lambdas


def _advice(failed: Path | None, usable: Path | None) -> str:
    """Say which checkpoint to resume: of the last two, the one whose next step failed, if any, and the one before."""
    delete = f"no step can be made from {failed.name}: delete it; " if failed and usable else ""
    do = f"resume {usable.name} with --resume and" if usable else "start again with"
    return (
        f"{delete}{do} a lower learning rate, a longer warm-up or a smaller gradient norm (--learning-rate, "
        "--warmup-steps, --grad-clip)"
    )


def _own(x: Array) -> Array:
    """Copy an array that training writes to."""
    return np.array(x, order="C") if isinstance(x, np.ndarray) else namespace(x).asarray(x, copy=True)


def _mean(parts: list[tuple[float, int]]) -> float:
    """Return the mean of all numbers, from the mean and the size of each part."""
    return sum(mean * size for mean, size in parts) / sum(size for _, size in parts)
