"""The options of `generate`: names, defaults, ranges, and the values in a checkpoint's files."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from numbers import Integral, Real
from pathlib import Path
from typing import Any

from refdiff.errors import CheckpointError
from refdiff.generation.tokenizer.backend import is_tokenizer
from refdiff.limits import FAR_BEYOND, LARGEST, OPTIONS
from refdiff.messages import did_you_mean, show_value, warn

MOST_TEXTS = 10_000
"""The most texts of one prompt; `validation.check_memory` checks how many fit into memory."""


def _is_int(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    """Return whether a value is a finite number that a float can hold."""
    try:
        return not isinstance(value, bool) and isinstance(value, Real) and math.isfinite(value)
    except OverflowError:  # an integer of hundreds of digits
        return False


def _check(accepts: Callable[[Any], bool], expected: str) -> dict[str, Any]:
    return {"accepts": accepts, "expected": expected}


def _integer(low: float, high: float = LARGEST) -> dict[str, Any]:
    return _check(lambda v: _is_int(v) and low <= v <= high, f"an integer from {low} to {high:,}")


def _number(
    low: float, high: float, *, above: bool = False, below: bool = False, or_zero: bool = False
) -> dict[str, Any]:
    """Return the check for a number from `low` to `high`; `above` and `below` exclude the two themselves."""
    expected = f"a number {'above' if above else 'from'} {low:g} {'to below' if below else 'to'} {high:g}"

    def accepts(value: Any) -> bool:
        if not _is_number(value):
            return False
        is_within = low <= value <= high and not (above and value == low) and not (below and value == high)
        return is_within or (or_zero and value == 0)

    return _check(accepts, f"0 or {expected}" if or_zero else expected)


def _is_ids(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(_is_int(v) and 0 <= v <= LARGEST for v in value)


def _is_list(value: Any) -> bool:
    """Return whether a value is a list or tuple that is not empty."""
    return isinstance(value, list | tuple) and len(value) > 0


def _bias_items(value: Any) -> list[tuple[Any, Any]]:
    """Return the pairs of a `sequence_bias` in either spelling, or for another value a pair that no check accepts."""
    if isinstance(value, Mapping):
        return list(value.items())
    if isinstance(value, list | tuple) and all(isinstance(pair, list | tuple) and len(pair) == 2 for pair in value):
        return [(pair[0], pair[1]) for pair in value]
    return [(None, None)]


_FLAG = _check(lambda v: isinstance(v, bool), "True or False")
_IDS = _check(_is_ids, "a list of token ids")
_WORDS = _check(
    lambda v: _is_list(v) and all(_is_ids(word) and _is_list(word) for word in v),
    "a non-empty list of non-empty lists of token ids",
)
_BIAS = _number(-1e30, 1e30)  # leaves scores finite, divided by `limits.SMALLEST_DIVISOR` too
_BIASES = _check(
    lambda v: all(_is_ids(key) and _is_list(key) and _BIAS["accepts"](bias) for key, bias in _bias_items(v)),
    "a dict {(id, id, …): bias} or a list [[[id, id, …], bias], …], each within ±1e30",
)
_STRINGS = _check(
    lambda v: v != "" if isinstance(v, str) else _is_list(v) and all(isinstance(s, str) and s for s in v),
    "a non-empty string or a list of them",
)
_EARLY = _check(lambda v: isinstance(v, bool) or v == "never", 'True, False or "never"')
_EOS = _check(lambda v: _is_ids([v]) or (_is_ids(v) and _is_list(v)), "a token id or a list of token ids")
_TOKENIZER = _check(is_tokenizer, "a tokenizer of refdiff, of tokenizers, or a fast one of transformers")
_ASSISTANT = _check(
    lambda v: callable(v) and "logits_to_keep" in getattr(v, "head_inputs", ()),
    "a model with a next-token head, such as a DiffLlamaForCausalLM, with the same vocabulary",
)


@dataclass(frozen=True)
class Options:
    """The options of one call of `generate`, after defaults; None means "off". Names and meaning are transformers'."""

    max_new_tokens: int | None = field(default=None, metadata=_integer(*OPTIONS["max_new_tokens"]))
    max_length: int | None = field(default=None, metadata=_integer(1))
    min_new_tokens: int | None = field(default=None, metadata=_integer(0))
    do_sample: bool = field(default=False, metadata=_FLAG)
    temperature: float | None = field(default=1.0, metadata=_number(*OPTIONS["temperature"], or_zero=True))
    top_k: int | None = field(default=50, metadata=_integer(*OPTIONS["top_k"]))
    top_p: float | None = field(default=1.0, metadata=_number(*OPTIONS["top_p"]))
    min_p: float | None = field(default=None, metadata=_number(*OPTIONS["min_p"]))
    typical_p: float | None = field(default=1.0, metadata=_number(0, 1, above=True))
    epsilon_cutoff: float | None = field(default=0.0, metadata=_number(0, 1, below=True))
    eta_cutoff: float | None = field(default=0.0, metadata=_number(0, 1, below=True))
    repetition_penalty: float | None = field(default=1.0, metadata=_number(*OPTIONS["repetition_penalty"]))
    no_repeat_ngram_size: int | None = field(default=0, metadata=_integer(*OPTIONS["no_repeat_ngram_size"]))
    bad_words_ids: list[list[int]] | None = field(default=None, metadata=_WORDS)
    suppress_tokens: list[int] | None = field(default=None, metadata=_IDS)
    sequence_bias: dict[tuple[int, ...], float] | None = field(default=None, metadata=_BIASES)
    num_beams: int = field(default=1, metadata=_integer(*OPTIONS["num_beams"]))
    length_penalty: float = field(default=1.0, metadata=_number(-20, 20))
    early_stopping: bool | str = field(default=False, metadata=_EARLY)
    num_return_sequences: int = field(default=1, metadata=_integer(1, MOST_TEXTS))
    eos_token_id: list[int] | None = field(default=None, metadata=_EOS)
    pad_token_id: int | None = field(default=None, metadata=_integer(0))
    stop_strings: list[str] | None = field(default=None, metadata=_STRINGS)
    tokenizer: Any = field(default=None, metadata=_TOKENIZER)
    max_time: float | None = field(default=None, metadata=_number(0, 1e9, above=True))
    prompt_lookup_num_tokens: int | None = field(default=None, metadata=_integer(1))
    assistant_model: Any = field(default=None, metadata=_ASSISTANT)
    penalty_alpha: float | None = field(default=None, metadata=_number(0, 1))
    return_dict_in_generate: bool = field(default=False, metadata=_FLAG)
    output_scores: bool = field(default=False, metadata=_FLAG)
    output_logits: bool = field(default=False, metadata=_FLAG)

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


NAMES = tuple(option.name for option in fields(Options))
_DEFAULTS = {option.name: option.default for option in fields(Options)}
_CHECKS = {option.name: option.metadata for option in fields(Options)}
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
LEFT_OUT: dict[str, Any] = dict.fromkeys((
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


def _check_value(name: str, value: Any, error: type[ValueError] = ValueError, origin: str = "") -> Any:
    """Return the value, arrays as lists, or raise `error` if it is out of its range."""
    if name not in _OBJECTS and callable(getattr(value, "tolist", None)):
        value = value.tolist()
    check = _CHECKS[name]
    if value is not None and not check["accepts"](value):
        raise error(f"{origin}{name}: got {show_value(value)}, expected {check['expected']}")
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
    found = {k: _check_value(k, v, CheckpointError, f"{origin}: ") for k, v in found.items()}
    most = FAR_BEYOND * (getattr(model.config, "max_position_embeddings", None) or LARGEST)
    for name in ("max_new_tokens", "max_length"):  # a call may ask for any length, a file not for hours of work
        if (found.get(name) or 0) > most:
            raise CheckpointError(
                f"{origin}: {name}: got {found[name]:,}, expected at most {most:,}, {FAR_BEYOND} times the context"
            )
    return found


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
        if name not in NAMES:
            check_left_out(name, value)
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
    _check_vocabulary(options, model, given)
    _warn_ignored(options, given)
    return options


def check_left_out(name: str, value: Any) -> None:
    """Accept an option of transformers that refdiff leaves out, with a value that changes nothing.

    Raises:
        TypeError: another value, or an option that is misspelled or unknown.
    """
    if name not in LEFT_OUT:
        hint = did_you_mean(name, NAMES, ": ", f"; the known ones are {', '.join(NAMES)}", cutoff=_SIMILAR)
        raise TypeError(f"generate() got an unknown option {name!r}{hint}")
    neutral = LEFT_OUT[name]
    is_alike = isinstance(value, bool) if isinstance(neutral, bool) else _is_number(value) or isinstance(value, list)
    if value is not None and not (is_alike and value == neutral):
        instead = f"; {_INSTEAD[name]}" if name in _INSTEAD else ""
        raise TypeError(f"generate() got {name!r}, an option of transformers that refdiff does not have{instead}")


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


def _check_vocabulary(options: Options, model: Any, given: Mapping[str, Any]) -> None:
    def refuse(name: str, problem: str) -> None:
        if name in given:
            raise ValueError(f"{name}: {problem}")
        raise CheckpointError(f"{_origin(model)}: {name}: {problem}")

    vocab_size = model.config.vocab_size
    for name, words in (("sequence_bias", options.sequence_bias), ("bad_words_ids", options.bad_words_ids)):
        for token in (token for word in words or () for token in word):
            if token >= vocab_size:
                refuse(name, f"got token {token}, expected 0 to {vocab_size - 1}")
    if len({token for token in options.suppress_tokens or () if token < vocab_size}) == vocab_size:
        refuse("suppress_tokens", f"got all {vocab_size:,} tokens of the vocabulary, expected to leave one")


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
