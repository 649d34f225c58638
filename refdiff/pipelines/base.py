"""The base class of the pipelines: it checks the names of options and handles one or several inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, ClassVar

from refdiff.generation.tokenizer import Tokenizer
from refdiff.messages import did_you_mean


class Pipeline:
    """A model and its tokenizer as one function. A subclass handles one input in `run`.

    A list of inputs gives a list of results. An iterator gives an iterator, which computes each result when it is read.
    """

    task: ClassVar[str]
    architecture: ClassVar[str]
    other_architectures: ClassVar[tuple[str, ...]] = ()
    known: ClassVar[tuple[str, ...]]
    """The names of all options."""
    run: Callable[..., Any]

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

    def _check_options(self, options: dict[str, Any]) -> dict[str, Any]:
        for name in options:
            if name not in self.known:
                hint = did_you_mean(name, self.known, "; ", f" among {', '.join(self.known)}")
                raise TypeError(f"{self.task}: got an unknown option {name!r}, expected a known one{hint}")
        return options
