"""The options of `generate`: names, defaults, ranges, and the values in a checkpoint's files."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from numbers import Integral, Real
from pathlib import Path
from typing import Any

from refdiff.errors import CheckpointError
from refdiff.generation.tokenizer.backend import is_tokenizer
from refdiff.limits import LARGEST, OPTIONS
from refdiff.messages import did_you_mean, show_value, warn

MOST_TEXTS = 10_000
"""The most texts of one prompt; `validation.check_memory` checks how many fit into memory."""


@dataclass(frozen=True)
class Options:
    """The options of one call of `generate`, after defaults; None means "off". Names and meaning are transformers'."""

    max_new_tokens: int | None = None
    max_length: int | None = None
    min_new_tokens: int | None = None
    do_sample: bool = False
    temperature: float | None = 1.0
    top_k: int | None = 50
    top_p: float | None = 1.0
    min_p: float | None = None
    typical_p: float | None = 1.0
    epsilon_cutoff: float | None = 0.0
    eta_cutoff: float | None = 0.0
    repetition_penalty: float | None = 1.0
    no_repeat_ngram_size: int | None = 0
    bad_words_ids: list[list[int]] | None = None
    suppress_tokens: list[int] | None = None
    sequence_bias: dict[tuple[int, ...], float] | None = None
    num_beams: int = 1
    length_penalty: float = 1.0
    early_stopping: bool | str = False
    num_return_sequences: int = 1
    eos_token_id: list[int] | None = None
    pad_token_id: int | None = None
    stop_strings: list[str] | None = None
    tokenizer: Any = None
    max_time: float | None = None
    prompt_lookup_num_tokens: int | None = None
    assistant_model: Any = None
    penalty_alpha: float | None = None
    return_dict_in_generate: bool = False
    output_scores: bool = False
    output_logits: bool = False

    @property
    def contrastive(self) -> bool:
        """Whether these options select contrastive search; sampling and beams take precedence, as in transformers."""
        if self.do_sample or self.num_beams > 1:
            return False
        return self.penalty_alpha is not None and self.penalty_alpha > 0 and self.top_k is not None and self.top_k > 1

    @property
    def speculative(self) -> bool:
        """Whether these options select guesses from the prompt or from an assistant model."""
        return self.prompt_lookup_num_tokens is not None or self.assistant_model is not None


NAMES = tuple(field.name for field in fields(Options))
_DEFAULTS = {field.name: field.default for field in fields(Options)}


def _is_int(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    """Return whether a value is a finite number that a float can hold."""
    try:
        return not isinstance(value, bool) and isinstance(value, Real) and math.isfinite(value)
    except OverflowError:  # an integer of hundreds of digits
        return False


def _is_bias(value: Any) -> bool:
    """Return whether a value is a bias that leaves scores finite, divided by `limits.SMALLEST_DIVISOR` too."""
    return _is_number(value) and abs(value) <= 1e30


def _integer(low: float, high: float = LARGEST) -> tuple[Callable[[Any], bool], str]:
    return (lambda v: _is_int(v) and low <= v <= high), f"an integer from {low} to {high:,}"


def _number(low: float, high: float, *, above: bool = False, below: bool = False) -> tuple[Callable[[Any], bool], str]:
    """Return the check for a number from `low` to `high`; `above` and `below` exclude the two themselves."""
    expected = f"a number {'above' if above else 'from'} {low:g} {'to below' if below else 'to'} {high:g}"
    return (
        lambda v: _is_number(v) and low <= v <= high and not (above and v == low) and not (below and v == high)
    ), expected


def _allow_zero(accepted: tuple[Callable[[Any], bool], str]) -> tuple[Callable[[Any], bool], str]:
    accepts, expected = accepted
    return (lambda v: accepts(v) or (_is_number(v) and v == 0)), f"0 or {expected}"


def _is_ids(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(_is_int(v) and 0 <= v <= LARGEST for v in value)


_FLAG = (lambda v: isinstance(v, bool), "True or False")
_IDS = (_is_ids, "a list of token ids")
_RANGES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "max_new_tokens": _integer(*OPTIONS["max_new_tokens"]),
    "max_length": _integer(1),
    "min_new_tokens": _integer(0),
    "do_sample": _FLAG,
    "temperature": _allow_zero(_number(*OPTIONS["temperature"])),
    "top_k": _integer(*OPTIONS["top_k"]),
    "top_p": _number(*OPTIONS["top_p"]),
    "min_p": _number(*OPTIONS["min_p"]),
    "typical_p": _number(0, 1, above=True),
    "epsilon_cutoff": _number(0, 1, below=True),
    "eta_cutoff": _number(0, 1, below=True),
    "repetition_penalty": _number(*OPTIONS["repetition_penalty"]),
    "no_repeat_ngram_size": _integer(*OPTIONS["no_repeat_ngram_size"]),
    "bad_words_ids": (
        lambda v: isinstance(v, list | tuple) and len(v) > 0 and all(_is_ids(word) and len(word) > 0 for word in v),
        "a non-empty list of non-empty lists of token ids",
    ),
    "suppress_tokens": _IDS,
    "sequence_bias": (
        lambda v: all(_is_ids(key) and len(key) > 0 and _is_bias(bias) for key, bias in _bias_items(v)),
        "a dict {(id, id, …): bias} or a list [[[id, id, …], bias], …], each within ±1e30",
    ),
    "num_beams": _integer(*OPTIONS["num_beams"]),
    "length_penalty": _number(-20, 20),
    "early_stopping": (lambda v: isinstance(v, bool) or v == "never", 'True, False or "never"'),
    "num_return_sequences": _integer(1, MOST_TEXTS),
    "eos_token_id": (lambda v: _is_ids([v]) or (_is_ids(v) and len(v) > 0), "a token id or a list of token ids"),
    "pad_token_id": _integer(0),
    "stop_strings": (
        lambda v: (
            (isinstance(v, str) and v != "")
            or (isinstance(v, list | tuple) and len(v) > 0 and all(isinstance(s, str) and s for s in v))
        ),
        "a non-empty string or a list of them",
    ),
    "tokenizer": (
        is_tokenizer,
        "a tokenizer of refdiff, of tokenizers, or a fast one of transformers",
    ),
    "max_time": _number(0, 1e9, above=True),
    "prompt_lookup_num_tokens": _integer(1),
    "assistant_model": (
        lambda v: callable(v) and "logits_to_keep" in getattr(v, "head_inputs", ()),
        "a model with a next-token head, such as a DiffLlamaForCausalLM, with the same vocabulary",
    ),
    "penalty_alpha": _number(0, 1),
    "return_dict_in_generate": _FLAG,
    "output_scores": _FLAG,
    "output_logits": _FLAG,
}
# Options of transformers' `generate` that refdiff leaves out, and what to use instead.
_INSTEAD = {
    "bos_token_id": "the one of the config starts an empty prompt",
    "cache": "give all ids as the prompt",
    "cache_implementation": "there is one kind of cache",
    "generation_config": "give its entries as options, or put generation_config.json into the checkpoint's folder",
    "inputs": "give the ids as input_ids",
    "min_length": "min_new_tokens counts the new tokens alone",
    "output_attentions": "call the model with the ids that were generated",
    "output_hidden_states": "call the model with the ids that were generated",
    "past_key_values": "give all ids as the prompt",
    "stopping_criteria": "there are stop_strings, eos_token_id and max_time",
    "use_cache": "the cache is always used",
}
# Those of them that change the text, with the value that does not; nor does None.
_CHANGES_TEXT: dict[str, Any] = {
    "begin_suppress_tokens": None, "constraints": None, "dola_layers": None, "encoder_no_repeat_ngram_size": 0,
    "encoder_repetition_penalty": 1, "exponential_decay_length_penalty": None, "force_words_ids": None,
    "forced_bos_token_id": None, "forced_eos_token_id": None, "guidance_scale": 1, "min_length": 0,
    "num_beam_groups": 1, "renormalize_logits": False, "token_healing": False, "top_h": None,
    "watermarking_config": None,
}  # fmt: skip
# All of them, with a value that changes nothing; nor does None.
_LEFT_OUT: dict[str, Any] = dict.fromkeys((
    *_INSTEAD, "assistant_confidence_threshold", "assistant_early_exit", "assistant_ensemble_weight",
    "assistant_lookbehind", "assistant_tokenizer", "cache_config", "compile_config", "continuous_batching_config",
    "custom_generate", "decoder_start_token_id", "inputs_embeds", "max_cache_len", "max_matching_ngram_size",
    "negative_prompt_attention_mask", "negative_prompt_ids", "num_assistant_tokens", "num_assistant_tokens_schedule",
    "prefill_chunk_size", "prefix_allowed_tokens_fn", "speculation_type", "target_lookbehind", "use_mtp",
)) | _CHANGES_TEXT | {
    "disable_compile": False, "diversity_penalty": 0, "is_assistant": False, "logits_processor": [],
    "low_memory": False, "output_attentions": False, "output_hidden_states": False, "remove_invalid_values": False,
    "stopping_criteria": [], "synced_gpus": False, "trust_remote_code": False, "use_cache": True,
}  # fmt: skip
_SIMILAR = 0.7  # of 1; below this, the nearest name is usually another option
_OBJECTS = ("tokenizer", "assistant_model")
_SAMPLING_ONLY = ("temperature", "top_p", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff")
_BEAMS_ONLY = ("length_penalty", "early_stopping")


def _bias_items(value: Any) -> list[tuple[Any, Any]]:
    """Return the pairs of a `sequence_bias` in either spelling, or for another value a pair that no check accepts."""
    if isinstance(value, Mapping):
        return list(value.items())
    if isinstance(value, list | tuple) and all(isinstance(pair, list | tuple) and len(pair) == 2 for pair in value):
        return [(pair[0], pair[1]) for pair in value]
    return [(None, None)]


def _check_value(name: str, value: Any, error: type[ValueError] = ValueError, origin: str = "") -> Any:
    """Return the value, arrays as lists, or raise `error` if it is out of its range."""
    if name not in _OBJECTS and callable(getattr(value, "tolist", None)):
        value = value.tolist()
    accepted, description = _RANGES[name]
    if value is not None and not accepted(value):
        raise error(f"{origin}{name}: got {show_value(value)}, expected {description}")
    return value


def _read_files(model: Any) -> dict[str, Any]:
    """Return the options in generation_config.json, and the end and padding tokens in config.json."""
    entries = {k: v for k, v in model.generation_config.items() if k in NAMES and k not in _OBJECTS and v is not None}
    found = {name: getattr(model.config, name, None) for name in ("eos_token_id", "pad_token_id")} | entries
    for name in ("eos_token_id", "pad_token_id"):
        if _is_int(found[name]) and found[name] < 0:  # how some files write "there is none"
            found[name] = None
    origin = _origin(model)
    for name, neutral in _CHANGES_TEXT.items():
        if (value := model.generation_config.get(name)) not in (None, neutral):
            warn(
                f"{origin}: {name}: got {show_value(value)}, expected none: refdiff does not have this option of "
                "transformers; the text is the one without it"
            )
    return {k: _check_value(k, v, CheckpointError, f"{origin}: ") for k, v in found.items()}


def _origin(model: Any) -> str:
    return str(Path(model.source or "") / "generation_config.json")


def resolve(model: Any, given: Mapping[str, Any]) -> Options:
    """Check the options of one call and fill in the rest.

    An option comes from the call, else from `model.generation_config`, else (eos and pad only) from `model.config`,
    else from transformers' defaults; so `do_sample=True` alone means top_k=50. An explicit None turns an option off.
    Options of transformers that refdiff lacks may have a value that changes nothing, such as `use_cache=True`.

    Raises:
        TypeError: an unknown option; names the nearest known one.
        ValueError: a value out of its range, or options that exclude each other.
        CheckpointError: a value out of its range in generation_config.json.
    """
    for name, value in given.items():
        if name not in NAMES and not _changes_nothing(name, value):
            raise _unknown(name)
    given = {name: _check_value(name, value) for name, value in given.items() if name in NAMES}
    values: dict[str, Any] = _DEFAULTS | _read_files(model) | given
    for name in ("do_sample", "num_beams", "length_penalty", "early_stopping", "num_return_sequences"):
        values[name] = _DEFAULTS[name] if values[name] is None else values[name]
    for name in ("return_dict_in_generate", "output_scores", "output_logits"):
        values[name] = bool(values[name])
    if values["stop_strings"] is not None and values["tokenizer"] is None:
        where = "" if "stop_strings" in given else f"{_origin(model)}: "
        raise ValueError(
            f"{where}tokenizer: got None, expected one for stop_strings; pass tokenizer=, or stop_strings=None"
        )
    _normalize(values)
    options = Options(**values)
    _check_together(options)
    _check_vocabulary(options, model.config.vocab_size, lambda name: "" if name in given else f"{_origin(model)}: ")
    _warn_ignored(options, given)
    return options


def _changes_nothing(name: str, value: Any) -> bool:
    """Return whether this is an option that refdiff leaves out, with a value that changes nothing."""
    if name not in _LEFT_OUT or value is None:
        return name in _LEFT_OUT
    neutral = _LEFT_OUT[name]
    is_alike = isinstance(value, bool) if isinstance(neutral, bool) else _is_number(value) or isinstance(value, list)
    return is_alike and bool(value == neutral)


def _unknown(name: str) -> TypeError:
    """Return the error for an option that refdiff leaves out, or that is misspelled or unknown."""
    if name in _LEFT_OUT:
        instead = f"; {_INSTEAD[name]}" if name in _INSTEAD else ""
        return TypeError(f"generate() got {name!r}, an option of transformers that refdiff does not have{instead}")
    hint = did_you_mean(name, NAMES, ": ", f"; the known ones are {', '.join(NAMES)}", cutoff=_SIMILAR)
    return TypeError(f"generate() got an unknown option {name!r}{hint}")


def _normalize(values: dict[str, Any]) -> None:
    """Bring options that have two spellings into one."""
    eos = values["eos_token_id"]
    if eos is not None:
        values["eos_token_id"] = [int(eos)] if _is_int(eos) else [int(e) for e in eos]
    if values["pad_token_id"] is None and eos is not None:
        values["pad_token_id"] = values["eos_token_id"][0]
    if isinstance(values["stop_strings"], str):
        values["stop_strings"] = [values["stop_strings"]]
    if values["sequence_bias"] is not None:
        pairs = _bias_items(values["sequence_bias"])
        values["sequence_bias"] = {tuple(int(i) for i in key): float(bias) for key, bias in pairs}
    if values["bad_words_ids"] is not None:
        ends = [[e] for e in values["eos_token_id"] or []]
        # The end of the sequence is not a word: forbidding it would make every text run to its length limit.
        words = [[int(i) for i in word] for word in values["bad_words_ids"]]
        values["bad_words_ids"] = [word for word in words if word not in ends]


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
        if options.num_beams > 1 or options.contrastive:
            raise ValueError(
                "prompt_lookup_num_tokens, assistant_model: got one with num_beams or penalty_alpha, expected greedy "
                "decoding or sampling; leave out num_beams and penalty_alpha"
            )
        if wanted > 1:
            raise ValueError(
                f"num_return_sequences: got {wanted}, expected 1 with prompt_lookup_num_tokens or assistant_model"
            )


def _check_vocabulary(options: Options, vocab_size: int, origin: Callable[[str], str]) -> None:
    named = [("sequence_bias", token) for sequence in options.sequence_bias or {} for token in sequence]
    named += [("bad_words_ids", token) for word in options.bad_words_ids or [] for token in word]
    for name, token in named:
        if token >= vocab_size:
            raise _range_error(origin(name), f"{name}: got token {token}, expected 0 to {vocab_size - 1}")
    if len({token for token in options.suppress_tokens or () if token < vocab_size}) == vocab_size:
        message = f"suppress_tokens: got all {vocab_size:,} tokens of the vocabulary, expected to leave one"
        raise _range_error(origin("suppress_tokens"), message)


def _range_error(origin: str, message: str) -> ValueError:
    return (CheckpointError if origin else ValueError)(f"{origin}{message}")


def _warn_ignored(options: Options, given: Mapping[str, Any]) -> None:
    """Warn of options of this call that have no effect, as transformers does."""

    def changed(names: tuple[str, ...]) -> list[str]:
        return [n for n in names if given.get(n) is not None and given[n] != _DEFAULTS[n]]

    ignored = {
        "do_sample=True": changed(_SAMPLING_ONLY) if not options.do_sample else [],
        "num_beams above 1": changed(_BEAMS_ONLY) if options.num_beams == 1 else [],
        "return_dict_in_generate=True": (
            changed(("output_scores", "output_logits")) if not options.return_dict_in_generate else []
        ),
    }
    if not options.do_sample and not options.contrastive:
        ignored["do_sample=True"] += changed(("top_k",))
    for needed, names in ignored.items():
        if names:
            warn(f"{', '.join(names)}: no effect without {needed}")
