"""The options of `generate`: names, defaults, ranges, and the values in a checkpoint's files."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from numbers import Integral, Real
from pathlib import Path
from typing import Any

from refdiff import hub
from refdiff.errors import CheckpointError
from refdiff.files import output_folder, read_json, write_atomically
from refdiff.generation.tokenizer.backend import backend_of
from refdiff.limits import FAR_BEYOND, LARGEST, OPTIONS
from refdiff.messages import did_you_mean, show_value, warn
from refdiff.refused import GENERATE, NEUTRAL, RefusedNames, check_neutral, instead, refuse_attribute


def _is_int(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    """Return whether a value is a finite number that a float can hold."""
    try:
        return not isinstance(value, bool) and isinstance(value, Real) and math.isfinite(value)
    except OverflowError:  # an integer of hundreds of digits
        return False


def check(accepts: Callable[[Any], bool], expected: str) -> dict[str, Any]:
    """Return the metadata of a field: what accepts a value, and the words for what is accepted."""
    return {"accepts": accepts, "expected": expected}


def integer(low: float, high: float = LARGEST) -> dict[str, Any]:
    """Return the check for an integer from `low` to `high`."""
    return check(lambda v: _is_int(v) and low <= v <= high, f"an integer from {low} to {high:,}")


def number(
    low: float, high: float, *, above: bool = False, below: bool = False, or_zero: bool = False
) -> dict[str, Any]:
    """Return the check for a number from `low` to `high`; `above` and `below` exclude the two themselves."""
    expected = f"a number {'above' if above else 'from'} {low:g} {'to below' if below else 'to'} {high:g}"

    def accepts(value: Any) -> bool:
        if not _is_number(value):
            return False
        is_within = low <= value <= high and not (above and value == low) and not (below and value == high)
        return is_within or (or_zero and value == 0)

    return check(accepts, f"0 or {expected}" if or_zero else expected)


def _is_ids(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(_is_int(v) and 0 <= v <= LARGEST for v in value)


def _is_list(value: Any) -> bool:
    """Return whether a value is a list or tuple that is not empty."""
    return isinstance(value, list | tuple) and len(value) > 0


def _is_tokenizer(value: Any) -> bool:
    try:
        return backend_of(value) is not None
    except TypeError:
        return False


def bias_items(value: Any) -> list[tuple[Any, Any]]:
    """Return the pairs of a `sequence_bias` in either spelling, or for another value a pair that no check accepts."""
    if isinstance(value, Mapping):
        return list(value.items())
    if isinstance(value, list | tuple) and all(isinstance(pair, list | tuple) and len(pair) == 2 for pair in value):
        return [(pair[0], pair[1]) for pair in value]
    return [(None, None)]


_FLAG = check(lambda v: isinstance(v, bool), "True or False")
_IDS = check(_is_ids, "a list of token ids")
_WORDS = check(
    lambda v: _is_list(v) and all(_is_ids(word) and _is_list(word) for word in v),
    "a non-empty list of non-empty lists of token ids",
)
_BIAS = number(-1e30, 1e30)  # leaves scores finite, divided by `limits.SMALLEST_DIVISOR` too
_BIASES = check(
    lambda v: all(_is_ids(key) and _is_list(key) and _BIAS["accepts"](bias) for key, bias in bias_items(v)),
    "a dict {(id, id, …): bias} or a list [[[id, id, …], bias], …], each within ±1e30",
)
_STRINGS = check(
    lambda v: v != "" if isinstance(v, str) else _is_list(v) and all(isinstance(s, str) and s for s in v),
    "a non-empty string or a list of them",
)
_EARLY = check(lambda v: isinstance(v, bool) or v == "never", 'True, False or "never"')
_EOS = check(lambda v: _is_ids([v]) or (_is_ids(v) and _is_list(v)), "a token id or a list of token ids")
_DECAY = check(
    lambda v: _is_list(v) and len(v) == 2 and _is_int(v[0]) and 0 <= v[0] <= LARGEST and _is_number(v[1]) and v[1] > 0,
    "a start, an integer of 0 or more, and a factor above 0",
)
_WATERMARK = check(
    lambda v: isinstance(v, Mapping) or callable(getattr(v, "to_dict", None)),
    "a WatermarkingConfig, a SynthIDTextWatermarkingConfig or a dict",
)
_CALLABLES = check(
    lambda v: isinstance(v, list | tuple) and all(callable(one) for one in v),
    "a list of functions (input_ids, scores), such as a LogitsProcessorList or a StoppingCriteriaList",
)
_FUNCTION = check(callable, "a function (prompt index, ids) → allowed token ids")
_PROMPTS = check(lambda v: _is_list(v) and all(_is_ids(ids) for ids in v), "(B, T) token ids")
_TOKENIZER = check(_is_tokenizer, "a tokenizer of refdiff, of tokenizers, or a fast one of transformers")
_ASSISTANT = check(
    lambda v: callable(v) and "logits_to_keep" in getattr(v, "head_inputs", ()),
    "a model with a next-token head, such as a DiffLlamaForCausalLM, with the same vocabulary",
)


@dataclass(frozen=True)
class Options:
    """The options of one call of `generate`, after defaults; None means "off". Names and meaning are transformers'."""

    max_new_tokens: int | None = field(default=None, metadata=integer(*OPTIONS["max_new_tokens"]))
    max_length: int | None = field(default=None, metadata=integer(1))
    min_length: int | None = field(default=0, metadata=integer(0))
    min_new_tokens: int | None = field(default=None, metadata=integer(0))
    do_sample: bool = field(default=False, metadata=_FLAG)
    temperature: float | None = field(default=1.0, metadata=number(*OPTIONS["temperature"], or_zero=True))
    top_h: float | None = field(default=None, metadata=number(0, 1, above=True))
    top_k: int | None = field(default=50, metadata=integer(*OPTIONS["top_k"]))
    top_p: float | None = field(default=1.0, metadata=number(*OPTIONS["top_p"]))
    min_p: float | None = field(default=None, metadata=number(*OPTIONS["min_p"]))
    typical_p: float | None = field(default=1.0, metadata=number(0, 1, above=True))
    epsilon_cutoff: float | None = field(default=0.0, metadata=number(0, 1, below=True))
    eta_cutoff: float | None = field(default=0.0, metadata=number(0, 1, below=True))
    repetition_penalty: float | None = field(default=1.0, metadata=number(*OPTIONS["repetition_penalty"]))
    no_repeat_ngram_size: int | None = field(default=0, metadata=integer(*OPTIONS["no_repeat_ngram_size"]))
    encoder_repetition_penalty: float | None = field(default=1.0, metadata=number(*OPTIONS["repetition_penalty"]))
    encoder_no_repeat_ngram_size: int | None = field(default=0, metadata=integer(*OPTIONS["no_repeat_ngram_size"]))
    bad_words_ids: list[list[int]] | None = field(default=None, metadata=_WORDS)
    suppress_tokens: list[int] | None = field(default=None, metadata=_IDS)
    sequence_bias: dict[tuple[int, ...], float] | None = field(default=None, metadata=_BIASES)
    begin_suppress_tokens: list[int] | None = field(default=None, metadata=_IDS)
    forced_bos_token_id: int | None = field(default=None, metadata=integer(0))
    forced_eos_token_id: list[int] | None = field(default=None, metadata=_EOS)
    exponential_decay_length_penalty: tuple[int, float] | None = field(default=None, metadata=_DECAY)
    remove_invalid_values: bool = field(default=False, metadata=_FLAG)
    renormalize_logits: bool = field(default=False, metadata=_FLAG)
    guidance_scale: float | None = field(default=None, metadata=number(-1e6, 1e6))
    negative_prompt_ids: list[list[int]] | None = field(default=None, metadata=_PROMPTS)
    negative_prompt_attention_mask: list[list[int]] | None = field(default=None, metadata=_PROMPTS)
    watermarking_config: Any = field(default=None, metadata=_WATERMARK)
    prefix_allowed_tokens_fn: Any = field(default=None, metadata=_FUNCTION)
    logits_processor: Any = field(default=None, metadata=_CALLABLES)
    stopping_criteria: Any = field(default=None, metadata=_CALLABLES)
    num_beams: int = field(default=1, metadata=integer(*OPTIONS["num_beams"]))
    length_penalty: float = field(default=1.0, metadata=number(-20, 20))
    early_stopping: bool | str = field(default=False, metadata=_EARLY)
    num_return_sequences: int = field(default=1, metadata=integer(1, 10_000))
    eos_token_id: list[int] | None = field(default=None, metadata=_EOS)
    pad_token_id: int | None = field(default=None, metadata=integer(0))
    stop_strings: list[str] | None = field(default=None, metadata=_STRINGS)
    tokenizer: Any = field(default=None, metadata=_TOKENIZER)
    max_time: float | None = field(default=None, metadata=number(0, 1e9, above=True))
    prompt_lookup_num_tokens: int | None = field(default=None, metadata=integer(1))
    assistant_model: Any = field(default=None, metadata=_ASSISTANT)
    return_dict_in_generate: bool = field(default=False, metadata=_FLAG)
    output_scores: bool = field(default=False, metadata=_FLAG)
    output_logits: bool = field(default=False, metadata=_FLAG)
    output_attentions: bool = field(default=False, metadata=_FLAG)
    output_hidden_states: bool = field(default=False, metadata=_FLAG)

    @property
    def speculative(self) -> bool:
        """Whether these options select guesses from the prompt or from an assistant model.

        They change no text, and a pass with several of them would have no maps of each token alone.
        """
        if self.output_attentions or self.output_hidden_states:
            return False
        return self.prompt_lookup_num_tokens is not None or self.assistant_model is not None


NAMES = tuple(option.name for option in fields(Options))
_DEFAULTS = {option.name: option.default for option in fields(Options)}
_CHECKS = {option.name: option.metadata for option in fields(Options)}
# Options of transformers' `generate` that say how fast, and never what: any value is accepted.
SPEED = (
    "assistant_confidence_threshold", "compile_config", "disable_compile", "is_assistant", "low_memory",
    "max_cache_len", "max_matching_ngram_size", "num_assistant_tokens", "num_assistant_tokens_schedule",
    "prefill_chunk_size", "synced_gpus", "trust_remote_code", "use_cache",
)  # fmt: skip
LEFT_OUT = frozenset((*SPEED, *(name for names in GENERATE.values() for name in names.split())))
"""Names of transformers' options that refdiff does not have."""
# Values of these that change nothing, beside None
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "cache_implementation": ("dynamic", "static"), "diversity_penalty": (0,), "num_beam_groups": (1,),
    "penalty_alpha": (0,), "return_dict": (True,), "token_healing": (False,),
}  # fmt: skip
_CHANGES_TEXT = (
    "assistant_ensemble_weight", "constraints", "dola_layers", "force_words_ids", "num_beam_groups", "penalty_alpha",
    "token_healing",
)  # fmt: skip
_SIMILAR = 0.7  # of 1; below this, the nearest name is usually another option
OBJECTS = ("tokenizer", "assistant_model", "logits_processor", "stopping_criteria", "prefix_allowed_tokens_fn")
"""Options that are no numbers, texts or lists: no file has them."""
_SAMPLING_ONLY = ("temperature", "top_h", "top_k", "top_p", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff")
_BEAMS_ONLY = ("length_penalty", "early_stopping")
_RESULTS = ("output_scores", "output_logits", "output_attentions", "output_hidden_states")
_NEVER_NONE = (
    "do_sample", "num_beams", "length_penalty", "early_stopping", "num_return_sequences", "return_dict_in_generate",
    "remove_invalid_values", "renormalize_logits", *_RESULTS,
)  # fmt: skip


def check_value(name: str, value: Any, error: type[ValueError] = ValueError, origin: str = "") -> Any:
    """Return the value, arrays as lists, or raise `error` if it is out of its range."""
    if name not in OBJECTS and callable(getattr(value, "tolist", None)):
        value = value.tolist()
    if name in ("eos_token_id", "pad_token_id") and _is_int(value) and (value == -1 or (origin and value < 0)):
        return None  # how some code and files write "there is none"
    accepted = _CHECKS[name]
    if value is not None and not accepted["accepts"](value):
        raise error(f"{origin}{name}: got {show_value(value)}, expected {accepted['expected']}")
    return value


def _read_files(model: Any) -> dict[str, Any]:
    """Return the options of the model, which are those in generation_config.json."""
    found = {k: v for k, v in model.generation_config.items() if k in NAMES and k not in OBJECTS and v is not None}
    origin = _origin(model)
    for name in _CHANGES_TEXT:
        if (value := model.generation_config.get(name)) not in (None, *_NEUTRAL.get(name, ())):
            warn(
                f"{origin}: {name}: got {show_value(value)}, expected none: refdiff does not have this option of "
                "transformers; the text is the one without it"
            )
    found = {k: check_value(k, v, CheckpointError, f"{origin}: ") for k, v in found.items()}
    most = FAR_BEYOND * (getattr(model.config, "max_position_embeddings", None) or LARGEST)
    for name in ("max_new_tokens", "max_length"):  # a call may ask for any length, a file not for hours of work
        if (found.get(name) or 0) > most:
            raise CheckpointError(
                f"{origin}: {name}: got {found[name]:,}, expected at most {most:,}, {FAR_BEYOND} times the context"
            )
    return found


def _origin(model: Any) -> str:
    return str(Path(model.source or "") / "generation_config.json")


def resolve(model: Any, given: Mapping[str, Any], generation_config: Any = None) -> Options:
    """Check the options of one call and fill in the rest.

    An option comes from the call, else from `generation_config` (a `GenerationConfig`, that of transformers, or a
    dict), else from `model.generation_config`, else from transformers' defaults; so `do_sample=True` alone means
    top_k=50. An explicit None in the call turns an option off.
    Options of transformers that refdiff lacks may have a value that changes nothing, such as `use_cache=True`.
    """
    entries = set_entries(generation_config)
    given = {**{k: v for k, v in entries.items() if k in NAMES or k in LEFT_OUT}, **given}
    for name, value in given.items():
        if name not in NAMES:
            check_left_out(name, value)
    given = {name: check_value(name, value) for name, value in given.items() if name in NAMES}
    values: dict[str, Any] = _DEFAULTS | _read_files(model) | given
    for name in _NEVER_NONE:
        values[name] = _DEFAULTS[name] if values[name] is None else values[name]
    if values["stop_strings"] is not None and values["tokenizer"] is None:
        where = "" if "stop_strings" in given else f"{_origin(model)}: "
        raise ValueError(
            f"{where}tokenizer: got None, expected one for stop_strings; pass tokenizer=, or stop_strings=None"
        )
    _normalize(values)
    options = Options(**values)
    _check_together(options)
    _check_vocabulary(options, model, given)
    _warn_ignored(options, given)
    return options


def set_entries(generation_config: Any) -> dict[str, Any]:
    """Return what a `GenerationConfig`, that of transformers or a dict sets; nothing for None."""
    entries: Any = {} if generation_config is None else generation_config
    if callable(getattr(entries, "to_dict", None)):
        entries = entries.to_dict()
    if not isinstance(entries, Mapping):
        raise TypeError(f"generation_config: got {show_value(entries)}, expected a GenerationConfig or a dict")
    return {name: value for name, value in entries.items() if value is not None}


def check_left_out(name: str, value: Any) -> None:
    """Accept an option of transformers that refdiff leaves out, with a value that changes nothing."""
    if name not in LEFT_OUT:
        hint = did_you_mean(name, NAMES, ": ", f"; the known ones are {', '.join(NAMES)}", cutoff=_SIMILAR)
        raise TypeError(f"generate() got an unknown option {name!r}{hint}")
    neutral = _NEUTRAL.get(name, ())
    is_alike = isinstance(value, str | Real) and all(isinstance(value, bool) == isinstance(n, bool) for n in neutral)
    if name not in SPEED and value is not None and not (is_alike and value in neutral):
        sentence = instead(name, GENERATE)
        raise TypeError(f"generate() got {name!r}, an option of transformers that refdiff does not have; {sentence}")


def _normalize(values: dict[str, Any]) -> None:
    """Bring options that have two spellings into one."""
    eos = values["eos_token_id"]
    if eos is not None:
        values["eos_token_id"] = [int(eos)] if _is_int(eos) else [int(e) for e in eos]
    if _is_int(values["forced_eos_token_id"]):
        values["forced_eos_token_id"] = [int(values["forced_eos_token_id"])]
    if values["pad_token_id"] is None and eos is not None:
        values["pad_token_id"] = values["eos_token_id"][0]
    if isinstance(values["stop_strings"], str):
        values["stop_strings"] = [values["stop_strings"]]
    if values["sequence_bias"] is not None:
        pairs = bias_items(values["sequence_bias"])
        values["sequence_bias"] = {tuple(int(i) for i in key): float(bias) for key, bias in pairs}


def _check_together(options: Options) -> None:
    if options.do_sample and options.temperature == 0:
        raise ValueError("temperature: got 0 with do_sample=True, expected above 0; for greedy text, do_sample=False")
    wanted = options.num_return_sequences
    if wanted > 1 and not options.do_sample and options.num_beams == 1:
        raise ValueError(
            f"num_return_sequences: got {wanted}, expected 1 with greedy decoding; use do_sample=True or num_beams"
        )
    if 1 < options.num_beams < wanted:
        raise ValueError(f"num_return_sequences: got {wanted}, expected at most num_beams, {options.num_beams}")
    if options.speculative:
        if options.prompt_lookup_num_tokens is not None and options.assistant_model is not None:
            raise ValueError("prompt_lookup_num_tokens, assistant_model: got both, expected one of them")
        if options.num_beams > 1:
            raise ValueError(
                "prompt_lookup_num_tokens, assistant_model: got one with num_beams, expected greedy decoding or "
                "sampling; leave out num_beams"
            )
        if wanted > 1:
            raise ValueError(
                f"num_return_sequences: got {wanted}, expected 1 with prompt_lookup_num_tokens or assistant_model"
            )


def _check_vocabulary(options: Options, model: Any, given: Mapping[str, Any]) -> None:
    def refuse(name: str, problem: str) -> None:
        if name in given:
            raise ValueError(f"{name}: {problem}")
        raise CheckpointError(f"{_origin(model)}: {name}: {problem}")

    vocab_size = model.config.vocab_size
    bos = [] if options.forced_bos_token_id is None else [options.forced_bos_token_id]
    named = {
        "sequence_bias": options.sequence_bias or (), "bad_words_ids": options.bad_words_ids or (),
        "forced_bos_token_id": [bos], "forced_eos_token_id": [options.forced_eos_token_id or []],
    }  # fmt: skip
    for name, words in named.items():
        if beyond := [token for word in words for token in word if token >= vocab_size]:
            refuse(name, f"got token {beyond[0]}, expected 0 to {vocab_size - 1}")
    if len({token for token in options.suppress_tokens or () if token < vocab_size}) == vocab_size:
        refuse("suppress_tokens", f"got all {vocab_size:,} tokens of the vocabulary, expected to leave one")


def _warn_ignored(options: Options, given: Mapping[str, Any]) -> None:
    """Warn of options of this call that have no effect, as transformers does."""

    def changed(names: tuple[str, ...]) -> list[str]:
        return [n for n in names if given.get(n) is not None and given[n] != _DEFAULTS[n]]

    ignored = {
        "do_sample=True": changed(_SAMPLING_ONLY) if not options.do_sample else [],
        "num_beams above 1": changed(_BEAMS_ONLY) if options.num_beams == 1 else [],
        "return_dict_in_generate=True": (changed(_RESULTS) if not options.return_dict_in_generate else []),
    }
    for needed, names in ignored.items():
        if names:
            warn(f"{', '.join(names)}: no effect without {needed}")


_KNOWN = frozenset((*NAMES, *LEFT_OUT, "bos_token_id", "transformers_version"))


class GenerationConfig(RefusedNames, dict[str, Any]):
    """Options of `generate`, with transformers' names, as entries and attributes; None: not set.

    `generate(generation_config=…)` takes it, and `model.generation_config` may be one. Entries
    of other names are kept.

    Raises:
        ValueError: a value out of its range.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__()
        for name, value in options.items():
            setattr(self, name, value)

    def __getattr__(self, name: str) -> Any:
        return self.get(name) if name in self or name in _KNOWN else refuse_attribute(self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        self[name] = check_value(name, value) if name in NAMES else value

    def update(self, **options: Any) -> dict[str, Any]:  # type: ignore[override]  # transformers' signature
        """Set options; return those that are none, neither of `generate` nor among the entries."""
        unused = {name: value for name, value in options.items() if name not in self and name not in _KNOWN}
        for name in sorted(options.keys() - unused.keys()):
            setattr(self, name, options[name])
        return unused

    def to_dict(self) -> dict[str, Any]:
        """Return what is set."""
        return {name: value for name, value in self.items() if value is not None}

    def to_json_string(self, **options: Any) -> str:
        """Return the content of generation_config.json, without objects."""
        check_neutral(self, "to_json_string", options)
        values = {name: value for name, value in self.to_dict().items() if name not in OBJECTS}
        if isinstance(biases := values.get("sequence_bias"), Mapping):
            values["sequence_bias"] = [[list(key), bias] for key, bias in biases.items()]
        return json.dumps(values, indent=2, sort_keys=True, default=lambda config: config.to_dict()) + "\n"

    @classmethod
    def from_dict(cls, config_dict: Mapping[str, Any], **options: Any) -> GenerationConfig:
        """Return the config of a dict, such as a generation_config.json, with options over it."""
        check_neutral(cls, "from_dict", {k: options.pop(k) for k in NEUTRAL["config"] if k in options}, "config")
        return cls(**{**config_dict, **options})

    @classmethod
    def from_model_config(cls, model_config: Any) -> GenerationConfig:
        """Return the options of `generate` that the config of a model has."""
        return cls(**{k: v for k, v in set_entries(model_config).items() if k in NAMES or k == "bos_token_id"})

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike[str], **options: Any) -> GenerationConfig:
        """Read the generation_config.json of a folder or a hub repo, with other options over it.

        Args:
            pretrained_model_name_or_path: the folder or the repo.
            options: those of `refdiff.hub.HubOptions`, such as revision, and those of `generate`.

        Raises:
            CheckpointError: it is missing or broken.
        """
        place = {name: options.pop(name) for name in hub.ARGUMENTS if name in options}
        file = options.pop("config_file_name", None) or "generation_config.json"
        folder = hub.snapshot(pretrained_model_name_or_path, files=("config.json", file), **place)
        return cls.from_dict(read_json(folder / file), **options)

    def save_pretrained(self, save_directory: str | os.PathLike[str], **options: Any) -> Path:
        """Write `generation_config.json` into `save_directory`, made if needed; return its path."""
        check_neutral(self, "save_pretrained", options)
        folder = output_folder(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "generation_config.json"
        write_atomically(path, self.to_json_string().encode("ascii"), follow_link=False)
        return path
