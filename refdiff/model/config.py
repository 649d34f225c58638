"""config.json → a checked dataclass, with every spelling of published files; unknown fields are kept and reported."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from refdiff import bundled, hub
from refdiff.checkpoint_files import CONFIG_FILES
from refdiff.errors import CheckpointError
from refdiff.files import output_folder, read_json, write_json
from refdiff.messages import list_problems, show_value, warn
from refdiff.model import config_checks, rope_parameters
from refdiff.model.commit import finish
from refdiff.model.variants import VARIANTS, current_name
from refdiff.refused import RefusedNames, check_neutral, refuse_attribute


def _default_of_calls(name: str) -> property:
    """Return a property for what a call of the model takes where its own argument is not given."""
    return property(lambda self: self.extra.get(name, False), lambda self, value: self.extra.update({name: value}))


@dataclass(init=False, kw_only=True)
class DiffLlamaConfig(RefusedNames):
    """The settings of a model, with the names and defaults of transformers' `DiffLlamaConfig`.

    Takes every spelling that config files use: `rope_parameters`, or `rope_theta` with
    `rope_scaling` (`type` or `rope_type`); `dtype` or `torch_dtype`; `id2label` or
    `num_labels`. After construction `num_key_value_heads` and `head_dim` are integers, and
    `rope_parameters` has `rope_type` and `rope_theta`. Fields that DiffLlama does not use stay
    in `extra`, are attributes too, and are written back by `save_pretrained`; one warning names
    those that are not in every file.

    `hidden_act` is one of `refdiff.layers.activation.NAMES`: every activation of transformers
    but xielu.

    `variant` says how attention is built from its heads: "hf" (transformers' DiffLlama) or
    another name of `refdiff.model.variants.VARIANTS`. Files tell it by their `model_type`.
    `wiring` and its value "none" are older names of `variant` and "plain".

    Raises:
        ValueError: a field is out of its range; the message has its name, its value, the range
            and the fix.
    """

    is_encoder_decoder: ClassVar[bool] = False
    sub_configs: ClassVar[Mapping[str, Any]] = {}
    output_attentions = _default_of_calls("output_attentions")
    output_hidden_states = _default_of_calls("output_hidden_states")

    vocab_size: int = 32000
    hidden_size: int = 2048
    intermediate_size: int = 8192
    num_hidden_layers: int = 16
    num_attention_heads: int = 32
    num_key_value_heads: int
    head_dim: int
    hidden_act: str = "silu"
    max_position_embeddings: int = 2048
    initializer_range: float = 0.02
    rms_norm_eps: float = 1e-5
    use_cache: bool = True
    pad_token_id: int | None = None
    bos_token_id: int | None = 1
    eos_token_id: int | list[int] | None = 2
    tie_word_embeddings: bool = False
    rope_parameters: dict[str, Any]
    attention_bias: bool = False
    attention_dropout: float = 0.0
    lambda_std_dev: float = 0.1
    variant: str
    dtype: str | None
    id2label: dict[int, str]
    label2id: dict[str, int] | None
    problem_type: str | None = None
    architectures: list[str] | None = None
    extra: dict[str, Any] = field(repr=False)

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            extra = vars(self).get("extra", {})
            return extra[name] if name in extra else refuse_attribute(self, name)

        def __setattr__(self, name: str, value: Any) -> None:
            super().__setattr__(name, value)
            is_own = name in ("extra", *FIELDS) or name.startswith("_") or hasattr(type(self), name)
            if not is_own and "extra" in vars(self):
                self.extra[name] = vars(self).pop(name)

    def __init__(self, **given: Any) -> None:
        remarks = self._fill(given)
        if remarks:
            warn("DiffLlamaConfig: " + "; ".join(remarks))

    @property
    def num_labels(self) -> int:
        """The number of labels of a classification head: the length of `id2label`."""
        return len(self.id2label)

    @num_labels.setter
    def num_labels(self, count: int) -> None:
        if count != len(self.id2label):
            config_checks.fill_labels(self, {"num_labels": count})

    @property
    def return_dict(self) -> bool:
        """True: a call returns an object, unless the call itself has `return_dict=False`."""
        return True

    @return_dict.setter
    def return_dict(self, value: bool) -> None:
        if not value:
            raise ValueError(f"return_dict: got {value!r} for the config, expected True; give False to the call")

    @property
    def num_query_heads(self) -> int:
        """The number of query heads: `num_attention_heads`, or twice that with two queries per head."""
        return self.num_attention_heads * VARIANTS[self.variant].query_heads

    @classmethod
    def from_dict(cls, config_dict: Mapping[str, Any], source: str = "config.json", **options: Any) -> DiffLlamaConfig:
        """Build a config from the content of a config.json; `source` names the file in messages.

        `options` are fields to change.

        Raises:
            CheckpointError: a field is out of its range; the message has the file, the field, its
                value, the range and the fix.
            TypeError: an option is no field.
        """
        changes = {name: options.pop(name) for name in FIELDS if name in options}
        check_neutral(cls, "from_dict", options, "config", FIELDS)
        labels = ("id2label", "label2id") if "num_labels" in changes else ()
        config = cls.__new__(cls)
        try:
            remarks = config._fill({**{k: v for k, v in config_dict.items() if k not in labels}, **changes})
        except ValueError as error:
            raise CheckpointError(f"{source}: {error}") from None
        if remarks:
            warn(f"{source}: " + "; ".join(remarks))
        return config

    @classmethod
    def from_json_file(cls, json_file: str | os.PathLike[str]) -> DiffLlamaConfig:
        """Read a config from a file, such as `to_json_file` writes."""
        return cls.from_dict(read_json(Path(json_file)), source=str(json_file))

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        **options: Any,
    ) -> DiffLlamaConfig:
        """Read the config of a folder, a file or a hub repo (only config files are downloaded).

        Args:
            pretrained_model_name_or_path: the folder, the file or the repo.
            options: those of `refdiff.hub.HubOptions`, such as revision and token, and fields of
                the config to change.

        Raises:
            CheckpointError: config.json is missing or wrong; the message names the file or repo,
                the field and the fix.
            TypeError: another argument.
        """
        where: dict[str, Any] = {name: options.pop(name) for name in hub.ARGUMENTS if name in options}
        changes = {name: options.pop(name) for name in FIELDS if name in options}
        check_neutral(cls, "from_pretrained", options, "config", (*hub.ARGUMENTS, *FIELDS))
        if changes.get("variant", "") is None:
            del changes["variant"]
        elif (variant := current_name(changes.get("variant", "hf"))) not in VARIANTS:
            expected = f"expected one of {', '.join(VARIANTS)}, how attention is built; dtype gives the precision"
            raise ValueError(f"variant: got {variant!r}, {expected}")
        path = Path(pretrained_model_name_or_path)
        if pretrained_model_name_or_path == bundled.NAME or not path.is_file():
            path = hub.snapshot(pretrained_model_name_or_path, files=CONFIG_FILES, **where) / "config.json"
        finish(path.parent)
        return cls.from_dict(read_json(path), str(path), **changes)

    @classmethod
    def from_config(cls, config: Any) -> DiffLlamaConfig:
        """Return a `DiffLlamaConfig` as it is; build one from another library's config object.

        Raises:
            TypeError: it has no `to_dict`.
        """
        if isinstance(config, DiffLlamaConfig):
            return config
        if not hasattr(config, "to_dict"):
            raise TypeError(
                f"config: got {type(config).__name__}, expected a DiffLlamaConfig; DiffLlamaConfig.from_dict makes one"
            )
        return cls.from_dict(config.to_dict(), source=type(config).__name__)

    @property
    def model_type(self) -> str:
        """What config.json calls the attention variant."""
        return VARIANTS[self.variant].model_type

    def update(self, config_dict: Mapping[str, Any]) -> None:
        """Set several fields, and check them all; a field that is unknown goes to `extra`."""
        self._fill({**self.to_dict(), **config_dict})

    def to_diff_dict(self) -> dict[str, Any]:
        """Return all fields but those of every kind of model that are at their defaults."""
        general = ("architectures", "dtype", "id2label", "label2id", "problem_type")
        defaults = DiffLlamaConfig().to_dict()
        return {name: x for name, x in self.to_dict().items() if name not in general or x != defaults[name]}

    def to_json_string(self, use_diff: bool = True) -> str:
        """Return the fields as JSON: those of `to_diff_dict`, or all."""
        values = self.to_diff_dict() if use_diff else self.to_dict()
        return json.dumps(values, indent=2, sort_keys=True) + "\n"

    def to_json_file(self, json_file_path: str | os.PathLike[str], use_diff: bool = True) -> None:
        """Write `to_json_string` to a file."""
        Path(json_file_path).write_text(self.to_json_string(use_diff), encoding="utf-8")

    def get_text_config(self, decoder: bool | None = None, encoder: bool | None = None) -> Self:
        """Return the config itself: DiffLlama is a model of text alone."""
        return self

    def to_dict(self) -> dict[str, Any]:
        """Return all fields, the extra ones and `model_type`, as `DiffLlamaConfig(**…)` takes them."""
        values = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        del values["extra"], values["variant"]
        return copy.deepcopy({**self.extra, **values, "model_type": VARIANTS[self.variant].model_type})

    def save_pretrained(self, save_directory: str | os.PathLike[str], **options: Any) -> Path:
        """Write `config.json` into `save_directory`, made if needed, atomically; return its path.

        A field that was changed since construction is checked again first.

        Raises:
            ValueError: a field outside its range, `OSError` when the folder cannot be written.
        """
        check_neutral(self, "save_pretrained", options)
        checked = type(self).__new__(type(self))
        checked._fill(self.to_dict())
        values = checked.to_dict()
        if values["id2label"] == config_checks.default_labels(2):
            # As transformers: two unnamed labels are what every model has, classifier or not.
            del values["id2label"], values["label2id"]
        for name in ("dtype", "label2id", "problem_type", "architectures"):
            if values.get(name) is None:
                values.pop(name, None)
        folder = output_folder(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "config.json", values)
        return folder / "config.json"

    def _fill(self, given: Mapping[str, Any]) -> list[str]:
        """Set every field from `given`; return remarks for the one warning."""
        for name in given:
            if not isinstance(name, str):
                raise ValueError(f"field names: got {show_value(name)}, expected strings")
        left = copy.deepcopy(dict(given))
        nested_extra = left.pop("extra", None)
        if nested_extra is not None:
            if not isinstance(nested_extra, Mapping):
                raise ValueError(f"extra: got {show_value(nested_extra)}, expected a dict of further fields")
            left = {**nested_extra, **left}
        config_checks.refuse_other_models(left)
        self.variant = config_checks.take_variant(left)
        if left.pop("model_type", None) == "llama":
            left = {**config_checks.LLAMA_DEFAULTS, **left}
        problems: list[str] = []
        for name, check in _CHECKS.items():
            try:
                setattr(self, name, check(name, left.pop(name, getattr(DiffLlamaConfig, name))))
            except ValueError as error:
                problems.append(str(error))
        if problems:
            raise ValueError(list_problems(problems))
        config_checks.fill_heads(self, left)
        legacy = {name: left.pop(name) for name in _LEGACY_ROPE if name in left}
        rope = left.pop("rope_parameters", None)
        self.rope_parameters = rope_parameters.resolve(
            rope, legacy, self.max_position_embeddings, left.get("original_max_position_embeddings")
        )
        try:
            remarks = rope_parameters.check(self.rope_parameters, self.head_dim, self.max_position_embeddings)
        except ValueError as error:
            raise ValueError(rope_parameters.use_config_names(str(error), rope, legacy)) from None
        remarks = [rope_parameters.use_config_names(remark, rope, legacy) for remark in remarks]
        self.dtype = config_checks.dtype_name(left.pop("dtype", None), left.pop("torch_dtype", None))
        config_checks.fill_labels(self, left)
        self.extra = left
        remarks += config_checks.token_id_remarks(self)
        unknown = sorted(name for name in left if not config_checks.written_by_transformers(name, left[name]))
        if unknown:
            remarks.insert(0, config_checks.describe_unknown(unknown, [entry.name for entry in fields(self)]))
        return remarks


_LEGACY_ROPE = ("rope_scaling", "rope_theta", "partial_rotary_factor")
_CALLS = ("output_attentions", "output_hidden_states")
FIELDS = (*(one.name for one in fields(DiffLlamaConfig) if one.name != "extra"), *_LEGACY_ROPE, "num_labels", *_CALLS)
"""What a config takes by name."""
_Check = Callable[[str, Any], Any]
_CHECKS: dict[str, _Check] = {
    "vocab_size": config_checks.size(2**31 - 1),
    "hidden_size": config_checks.size(2**24),
    "intermediate_size": config_checks.size(2**28),
    "num_hidden_layers": config_checks.size(10_000),
    "num_attention_heads": config_checks.size(2**16),
    "hidden_act": config_checks.activation,
    "max_position_embeddings": config_checks.size(2**53),
    "initializer_range": config_checks.non_negative,
    "rms_norm_eps": config_checks.non_negative,
    "use_cache": config_checks.boolean,
    "pad_token_id": config_checks.token_id,
    "bos_token_id": config_checks.token_id,
    "eos_token_id": config_checks.token_id_or_list,
    "tie_word_embeddings": config_checks.boolean,
    "attention_bias": config_checks.boolean,
    "attention_dropout": config_checks.no_dropout,
    "lambda_std_dev": config_checks.non_negative,
    "problem_type": config_checks.problem_type,
    "architectures": config_checks.names,
}
