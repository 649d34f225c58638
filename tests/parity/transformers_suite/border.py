"""refdiff's classes as transformers' tests call them: torch tensors become NumPy arrays, and results torch tensors."""

from __future__ import annotations

import functools
import importlib
import re
import types
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

import refdiff

SUBJECTS = re.compile(
    r"DiffLlama\w+|Auto(Config|Tokenizer|Model\w*)|GenerationConfig|\w+(LogitsProcessor|LogitsWarper|Criteria|Streamer)"
    r"|LogitsProcessorList|StoppingCriteriaList|ExponentialDecayLengthPenalty|LogitNormalization|set_seed|pipeline"
    r"|validate_stopping_criteria|ROPE_INIT_FUNCTIONS|PreTrainedTokenizer(Fast)?|TokenizersBackend|BatchEncoding"
)
"""The names that a test imports from transformers and gets from here."""

HOMES = (
    "",
    *(f".generation.{name}" for name in ("logits_process", "watermarking", "stopping", "stream")),
    ".pipelines",
)
TOKENIZERS = re.compile(r"AutoTokenizer|PreTrainedTokenizer(Fast)?|TokenizersBackend")
IGNORED = ("do_lower_case",)
"""Arguments that the tests give to every tokenizer, and that transformers' fast ones do nothing with."""
HUB = re.compile(r"[\w.-]+/[\w.-]+")


def to_refdiff(value: Any) -> Any:
    """Convert the arguments of a call; a repo of the hub becomes the bundled model, since there is no network."""
    if isinstance(value, torch.Tensor):
        return value.detach().float().numpy() if value.dtype == torch.bfloat16 else value.detach().numpy()
    if isinstance(value, Border):
        return value._inner
    if isinstance(value, BorderType):
        return value.__dict__["_class"]
    if isinstance(value, list | tuple) and type(value) in (list, tuple):
        return type(value)(to_refdiff(item) for item in value)
    if type(value) is dict:
        return {name: to_refdiff(item) for name, item in value.items()}
    if isinstance(value, str) and HUB.fullmatch(value) and not Path(value).exists():
        return "bundled"
    return "np" if isinstance(value, str) and value == "pt" else value


def to_torch(value: Any) -> Any:
    """Convert what a call returns, and the arrays in dicts, tuples and results."""
    if isinstance(value, np.ndarray | np.generic) and value.dtype.kind in "fiub":
        array = np.asarray(value)
        return torch.from_numpy(array if array.flags.writeable else array.copy())
    if isinstance(value, list | tuple) and type(value) in (list, tuple):
        return type(value)(to_torch(item) for item in value)
    if isinstance(value, dict):
        converted = {name: to_torch(item) for name, item in value.items()}
        if type(value) is dict:
            return converted
        value.update(converted)
    elif type(value).__module__.startswith("refdiff.") and hasattr(value, "to_tuple"):
        for name, item in vars(value).items():
            setattr(value, name, to_torch(item))
    elif isinstance(value, types.GeneratorType | type(iter({}.values())) | type(iter({}.items()))):
        return iter([to_torch(item) for item in value])
    elif type(value) in CLASSES.values():
        return class_of(type(value).__name__)._around(value)
    elif callable(value) and not isinstance(value, type):

        @functools.wraps(value)
        def called(*args: Any, **kwargs: Any) -> Any:
            kept = {name: to_refdiff(item) for name, item in kwargs.items() if name not in IGNORED}
            return to_torch(value(*map(to_refdiff, args), **kept))

        return called
    return value


class BorderType(type):
    """The class of `Border`'s classes: what a class itself is asked for, such as `from_pretrained`."""

    _class: Any

    def __getattr__(cls, name: str) -> Any:
        if name == "_from_config":
            return lambda config, attn_implementation=None: cls(config)
        if name.startswith("_"):  # a fact about transformers' own class, or nothing
            return getattr(getattr(transformers, cls.__name__, None), name)
        return to_torch(getattr(cls._class, name))

    def __instancecheck__(cls, instance: Any) -> bool:
        ours = cls._class is not object and isinstance(getattr(instance, "_inner", instance), cls._class)
        return ours or super().__instancecheck__(instance)


class Border(metaclass=BorderType):
    """An object of refdiff."""

    _class: Any = object
    _inner: Any

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        object.__setattr__(self, "_inner", self._class(*map(to_refdiff, args), **to_refdiff(kwargs)))

    @classmethod
    def _around(cls, inner: Any) -> Any:
        new = cls.__new__(cls)
        object.__setattr__(new, "_inner", inner)
        return new

    def __getattr__(self, name: str) -> Any:
        if name == "_inner":
            raise AttributeError(name)
        return to_torch(getattr(self._inner, name))

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._inner, name, to_refdiff(value))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return to_torch(self._inner(*map(to_refdiff, args), **to_refdiff(kwargs)))

    def __len__(self) -> int:
        return len(self._inner)

    def __iter__(self) -> Any:
        return iter(self._inner)

    def __getitem__(self, key: Any) -> Any:
        return to_torch(self._inner[key])


class Missing:
    """A name that refdiff does not have: it fails where a test uses it, not where a file imports it."""

    def __init__(self, name: str) -> None:
        self._missing = name

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        raise AttributeError(f"refdiff has no {self._missing}")

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise AttributeError(f"refdiff has no {self._missing}")


class RotaryEmbedding:
    """The module that transformers' models have for RoPE, by refdiff's two functions."""

    def __init__(self, config: Any, device: Any = None) -> None:
        self.config = config

    def to(self, device: Any) -> RotaryEmbedding:
        return self

    def __call__(self, x: torch.Tensor, position_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        positions = position_ids.numpy()
        frequencies, scale = _frequencies(self.config, int(positions.max()) + 1)
        factors = refdiff.layers.rope_cos_sin(positions, frequencies, scale, np.float32)
        return tuple(torch.from_numpy(np.concatenate([half, half], -1)) for half in factors)  # type: ignore[return-value]


def _frequencies(config: Any, length: int) -> tuple[np.ndarray, float]:
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    ours = refdiff.DiffLlamaConfig.from_dict({"model_type": "diffllama", **config.to_dict()})
    return refdiff.layers.rope_frequencies(ours.rope_parameters, head_dim, config.max_position_embeddings, length)


def rope_init(config: Any, device: Any = None, seq_len: int | None = None, **_: Any) -> tuple[torch.Tensor, float]:
    """A function of transformers' `ROPE_INIT_FUNCTIONS`, whose kind the config says."""
    frequencies, scale = _frequencies(config, seq_len or 1)
    return torch.from_numpy(frequencies).float(), scale


def set_seed(seed: int) -> None:
    """Seed what draws the inputs, and refdiff."""
    transformers.set_seed(seed)
    getattr(refdiff, "set_seed", lambda _: None)(seed)


CLASSES: dict[str, type] = {}
_MADE: dict[str, Any] = {
    "set_seed": set_seed,
    "DiffLlamaRotaryEmbedding": RotaryEmbedding,
    "ROPE_INIT_FUNCTIONS": dict.fromkeys(transformers.modeling_rope_utils.ROPE_INIT_FUNCTIONS, rope_init),
}


def class_of(name: str) -> Any:
    """refdiff's class or function of this name behind the border."""
    name = "Tokenizer" if TOKENIZERS.fullmatch(name) and name not in refdiff.__all__ else name
    if name not in _MADE:
        found = None
        for home in HOMES:
            try:
                found = getattr(importlib.import_module(f"refdiff{home}"), name)
                break
            except AttributeError:
                continue
        if found is refdiff.DiffLlamaConfig:  # has no arrays
            _MADE[name] = found
        elif isinstance(found, type):
            CLASSES[name] = found
            _MADE[name] = BorderType(name, (Border,), {"_class": found})
        else:
            _MADE[name] = Missing(name) if found is None else to_torch(found)
    return _MADE[name]


def __getattr__(name: str) -> Any:
    if SUBJECTS.fullmatch(name):
        return class_of(name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
