"""The base class of the pipelines: it checks the names of options and handles one or several inputs."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

from refdiff.generation.tokenizer import Tokenizer
from refdiff.messages import did_you_mean
from refdiff.refused import PIPELINE, instead


class Pipeline:
    """A model and its tokenizer as one function. A subclass handles one input in `run`.

    A list of inputs gives a list of results. An iterator gives an iterator, which computes each result when it is read.
    `batch_size` changes no result: only text generation computes several inputs at once. `num_workers` is ignored.
    """

    task: ClassVar[str]
    architecture: ClassVar[str]
    other_architectures: ClassVar[tuple[str, ...]] = ()
    run: Callable[..., Any]
    """Handle one input; its keyword-only parameters are the options."""

    def __init__(self, model: Any, tokenizer: Tokenizer, **options: Any) -> None:
        self.check_model(model)
        self.model = model
        self.tokenizer = tokenizer
        self.options = self._check_options(options)

    @classmethod
    def check_model(cls, model: Any) -> None:
        """Raise `TypeError` if the model's class is not one of this task."""
        accepted = (cls.architecture, *cls.other_architectures)
        if getattr(model, "architecture", type(model).__name__) not in accepted:
            raise TypeError(f"model: got {type(model).__name__}, expected {' or '.join(accepted)} for {cls.task}")

    def __call__(self, inputs: Any, **options: Any) -> Any:
        """Handle one input, or a list or iterator of inputs. These options override those of the pipeline."""
        merged = {**self.options, **self._check_options(options)}
        if isinstance(inputs, Iterator):
            return (self.run(item, **merged) for item in inputs)
        if isinstance(inputs, list):
            return [self.run(item, **merged) for item in inputs]
        return self.run(inputs, **merged)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({type(self.model).__name__}, {self.tokenizer!r})"

    @classmethod
    def option_names(cls) -> list[str]:
        """Return the names of all options."""
        return keyword_only(cls.run)

    def _check_options(self, options: dict[str, Any]) -> dict[str, Any]:
        check_batch_size(options.get("batch_size"))
        options = {name: value for name, value in options.items() if name not in ("batch_size", "num_workers")}
        known = self.option_names()
        for name in options:
            if name not in known:
                if reason := instead(name, PIPELINE):
                    raise TypeError(f"{self.task}: got {name!r}, an argument of transformers' pipelines; {reason}")
                hint = did_you_mean(name, known, "; ", f" among {', '.join(known)}")
                raise TypeError(f"{self.task}: got an unknown option {name!r}, expected a known one{hint}")
        return options


def check_batch_size(size: Any) -> None:
    """Raise `ValueError` unless `batch_size` is a whole number from 1, or None."""
    if size is not None and (isinstance(size, bool) or not isinstance(size, int) or size < 1):
        raise ValueError(f"batch_size: got {size!r}, expected a whole number from 1")


def keyword_only(function: Callable[..., Any]) -> list[str]:
    """Return the names of a function's parameters that are keyword-only."""
    return [name for name, p in inspect.signature(function).parameters.items() if p.kind is p.KEYWORD_ONLY]
