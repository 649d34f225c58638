"""The base class of the pipelines: it checks the names of options, and calls the model on batches of inputs."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Generator, Iterator
from itertools import islice
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from refdiff.arrays import to_numpy
from refdiff.generation.tokenizer import Tokenizer
from refdiff.messages import did_you_mean
from refdiff.refused import PIPELINE, RefusedAttributes, instead

TOKENIZER_OPTIONS = ("truncation", "padding", "add_special_tokens", "max_length", "padding_side", "stride")
Outputs = tuple[NDArray[Any], ...]
Process = Generator[list[dict[str, list[int]]], list[Outputs], Any]
"""Yields the model's inputs, one dict for each call of the model, gets the outputs of all, and returns the result."""


class Pipeline(RefusedAttributes):
    """A model and its tokenizer as one function. A subclass handles one input in `process`.

    A list of inputs gives a list of results. An iterator gives an iterator, which computes each batch of results when
    the first of them is read. The model reads `batch_size` texts at once, padded to one length: results differ from
    those of single texts by rounding errors. `num_workers` is ignored.
    """

    task: ClassVar[str]
    architecture: ClassVar[str]
    other_architectures: ClassVar[tuple[str, ...]] = ()
    process: Callable[..., Process]
    """Handle one input; its keyword-only parameters are the options."""

    def __init__(
        self,
        model: Any,
        tokenizer: Tokenizer,
        *,
        batch_size: int | None = None,
        num_workers: Any = None,
        **options: Any,
    ) -> None:
        self.check_model(model)
        self.model = model
        self.tokenizer = tokenizer
        self.batch_size = _check_batch_size(batch_size) or 1
        self.options = self._check_options(options)

    @property
    def device(self) -> Any:
        """The device of the model."""
        return self.model.device

    @classmethod
    def check_model(cls, model: Any) -> None:
        """Raise `TypeError` if the model's class is not one of this task."""
        accepted = (cls.architecture, *cls.other_architectures)
        if _architecture(model) not in accepted:
            raise TypeError(f"model: got {type(model).__name__}, expected {' or '.join(accepted)} for {cls.task}")

    def __call__(self, inputs: Any, *, batch_size: int | None = None, num_workers: Any = None, **options: Any) -> Any:
        """Handle one input, or a list or iterator of inputs. These options override those of the pipeline."""
        merged = {**self.options, **self._check_options(options)}
        size = _check_batch_size(batch_size) or self.batch_size
        if self._is_one(inputs):
            return self._run_batch([inputs], size, merged)[0]
        results = self._run_batches(iter(inputs), size, merged)
        return results if isinstance(inputs, Iterator) else list(results)

    def _is_one(self, inputs: Any) -> bool:
        """Return whether the inputs are one, and not a list or iterator of them."""
        return not isinstance(inputs, list | Iterator)

    def _run_batches(self, items: Iterator[Any], size: int, options: dict[str, Any]) -> Iterator[Any]:
        while batch := list(islice(items, size)):
            yield from self._run_batch(batch, size, options)

    def _run_batch(self, items: list[Any], size: int, options: dict[str, Any]) -> list[Any]:
        """Handle some inputs, each of which may take several calls of the model."""
        started = [self.process(item, **options) for item in items]
        inputs = [next(process) for process in started]
        flat = [one for each in inputs for one in each]
        outputs = iter([out for i in range(0, len(flat), size) for out in self._call_model(flat[i : i + size])])
        results = []
        for process, each in zip(started, inputs, strict=True):
            try:
                process.send(list(islice(outputs, len(each))))
            except StopIteration as end:
                results.append(end.value)
        return results

    def _call_model(self, inputs: list[dict[str, list[int]]]) -> list[Outputs]:
        """Call the model on one batch, and return the outputs of each text, without those of the padding."""
        if len(inputs) == 1:
            batch = {name: np.asarray([values], dtype=np.int64) for name, values in inputs[0].items()}
        else:
            batch = self.tokenizer.pad(inputs, return_tensors="np")
        results = self.model(**batch, use_cache=False).to_tuple()
        outputs = [to_numpy(one) for one in results if not isinstance(one, tuple)]  # no hidden states
        if _architecture(self.model) == "DiffLlamaForSequenceClassification":
            return [tuple(output[i] for output in outputs) for i in range(len(inputs))]
        width, left = batch["input_ids"].shape[1], self.tokenizer.padding_side == "left"
        shares = [slice(width - n, None) if left else slice(n) for n in (len(one["input_ids"]) for one in inputs)]
        return [tuple(output[i, share] for output in outputs) for i, share in enumerate(shares)]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({type(self.model).__name__}, {self.tokenizer!r})"

    @classmethod
    def option_names(cls) -> list[str]:
        """Return the names of all options."""
        return keyword_only(cls.process)

    def _check_options(self, options: dict[str, Any]) -> dict[str, Any]:
        known = self.option_names()
        for name in options:
            if name not in known:
                if reason := instead(name, PIPELINE):
                    raise TypeError(f"{self.task}: got {name!r}, an argument of transformers' pipelines; {reason}")
                hint = did_you_mean(name, known, "; ", f" among {', '.join(known)}")
                raise TypeError(f"{self.task}: got an unknown option {name!r}, expected a known one{hint}")
        return options


def _architecture(model: Any) -> str:
    return getattr(model, "architecture", type(model).__name__)


def _check_batch_size(size: Any) -> int | None:
    """Return `batch_size`, a whole number from 1, or None; raise `ValueError` for others."""
    if size is None:
        return None
    if isinstance(size, bool) or not isinstance(size, int | np.integer) or size < 1:
        raise ValueError(f"batch_size: got {size!r}, expected a whole number from 1")
    return int(size)


def keyword_only(function: Callable[..., Any]) -> list[str]:
    """Return the names of a function's parameters that are keyword-only."""
    return [name for name, p in inspect.signature(function).parameters.items() if p.kind is p.KEYWORD_ONLY]
