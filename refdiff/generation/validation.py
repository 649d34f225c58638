"""Check a call of `generate` and turn it into the `Request` that every decoding method starts from."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refdiff.errors import CheckpointError
from refdiff.generation import sampling
from refdiff.generation.context import DecodingContext
from refdiff.generation.options import Options
from refdiff.generation.stopping import (
    EosTokenCriteria,
    MaxLengthCriteria,
    MaxTimeCriteria,
    StoppingCriteriaList,
    StopStringCriteria,
)
from refdiff.messages import show_value, warn
from refdiff.model.cache import KVCache
from refdiff.model.inputs import check_known, integers, numbers, refuse_text, token_ids

Emit = Callable[[Any], None]
Progress = Callable[[str, int, int], None]
"""Called with the stage, "prompt" or "text", the tokens done, and the tokens of the whole stage at most."""


@dataclass(frozen=True)
class Request:
    """The prompt of a call, (B, T) ids with their mask (None where nothing is masked), its options and its limits.

    max_length: the most tokens of prompt and text together. cache, inputs_embeds, record: see `DecodingContext`.
    missing: the positions of the prompt that have an embedding, but no id.
    """

    model: Any
    ids: NDArray[np.int64]
    mask: NDArray[np.int64] | None
    options: Options
    max_length: int
    seed: int | tuple[int, ...]
    emit: Emit
    progress: Progress
    cache: Any = None
    inputs_embeds: Any = None
    record: tuple[str, ...] = ()
    missing: int = 0
    stopping: StoppingCriteriaList = field(init=False)

    def __post_init__(self) -> None:
        """Create the criteria of the options, and take those given, of which one replaces an option's of its type."""
        o, given = self.options, self.options.stopping_criteria or []
        own: list[Any] = [MaxLengthCriteria(self.max_length)]
        own += [EosTokenCriteria(o.eos_token_id)] if o.eos_token_id else []
        own += [StopStringCriteria(o.tokenizer, o.stop_strings, self.padding)] if o.stop_strings else []
        own += [] if o.max_time is None else [MaxTimeCriteria(o.max_time)]  # its time begins here
        replaced = {type(one) for one in given}
        kept = (one for one in own if type(one) not in replaced)
        object.__setattr__(self, "stopping", StoppingCriteriaList([*kept, *given]))

    def context(self) -> DecodingContext:
        """Return the model with an empty cache, or the one given, which reads the prompt first."""
        limit = self.max_length + self.missing
        kept = self.cache, self.inputs_embeds, self.record
        return DecodingContext(self.model, self.mask, limit, self.progress, *kept)

    @property
    def padding(self) -> NDArray[np.int64] | None:
        """The number of masked ids at the start of each sequence, (B,); None where nothing is masked."""
        return None if self.mask is None else (self.mask != 0).argmax(axis=1)

    def random_streams(self, indices: NDArray[np.int64]) -> list[sampling.Uniforms]:
        """Return a stream of random numbers for the prompt at each of `indices`, which may repeat.

        With one seed per prompt, the streams of a prompt do not depend on the other prompts, not even on an equal one.
        """
        mask = self.mask if self.mask is not None and self.mask.shape == self.ids.shape else np.ones_like(self.ids)
        prompts = [self.ids[index][mask[index] != 0] for index in indices]
        if isinstance(self.seed, int):
            return sampling.prompt_streams(self.seed, prompts)
        streams: list[sampling.Uniforms] = []
        for i, index in enumerate(indices):
            copies = int((indices[: i + 1] == index).sum())
            streams.append(sampling.prompt_streams(self.seed[index], [prompts[i]] * copies)[-1])
        return streams


def read_ids(input_ids: Any, bos: Any, vocab_size: int) -> NDArray[np.int64]:
    """Return prompt ids as (B, T) int64; an empty prompt becomes the beginning-of-sequence token."""
    refuse_text("input_ids", input_ids, "model.generate")
    ids = integers("input_ids", np.empty((1, 0), np.int64) if input_ids is None else input_ids)
    if ids.ndim == 2 and len(ids) > 0 and ids.shape[1] == 0:
        return np.full((len(ids), 1), _check_bos(bos, vocab_size), np.int64)
    ids = token_ids(ids)
    check_known(ids, vocab_size)
    return ids


def _check_bos(bos: Any, vocab_size: int) -> int:
    if bos is None:
        raise ValueError(
            "input_ids: got no token, expected one or more, as the model has no bos_token_id to start from"
        )
    if isinstance(bos, bool) or not isinstance(bos, int) or not 0 <= bos < vocab_size:
        raise CheckpointError(
            f"bos_token_id: got {show_value(bos)}, expected 0 to {vocab_size - 1} to start an empty prompt; give "
            "one token or more, or correct generation_config.json or config.json"
        )
    return bos


def read_mask(attention_mask: Any, ids: NDArray[np.int64], options: Options) -> NDArray[np.int64] | None:
    """Return the mask as (B, T) int64, or None where nothing is masked; the default masks padding tokens.

    A padding token that is an end-of-sequence token too is not masked by default.
    """
    if attention_mask is None:
        pad = options.pad_token_id
        if pad is None or pad in (options.eos_token_id or []) or not (ids == pad).any():
            return None
        mask = (ids != pad).astype(np.int64)
    else:
        mask = numbers("attention_mask", attention_mask)
        if mask.shape != ids.shape:
            raise ValueError(f"attention_mask: got shape {mask.shape}, expected {ids.shape}, the shape of input_ids")
        if (other := mask[~np.isin(mask, (0, 1))]).size:
            raise ValueError(f"attention_mask: got {show_value(other[0].item())}, expected 0 (padding) or 1 (token)")
        mask = mask.astype(np.int64)
    if (mask[:, -1] == 0).any() and ids.shape[0] > 1:
        warn("the prompts are padded on the right: the text would go on after padding; pad on the left")
    return None if mask.all() else mask


def read_embeds(inputs_embeds: Any, input_ids: Any) -> NDArray[Any]:
    """Return the embeddings of the prompts (B, T, D); the model checks their size."""
    embeds = numbers("inputs_embeds", inputs_embeds)
    shape = embeds.shape[:2] if input_ids is None else np.shape(integers("input_ids", input_ids))
    if embeds.ndim != 3 or 0 in embeds.shape or embeds.shape[:2] != shape:
        expected = "(B, T, D)" if input_ids is None else f"({', '.join(map(str, shape))}, D), as input_ids"
        raise ValueError(f"inputs_embeds: got shape {embeds.shape}, expected {expected}")
    return embeds


def check_cache(cache: Any, ids: NDArray[np.int64]) -> None:
    """Raise where a given cache does not hold the beginning of the ids (B, T)."""
    if cache is None:
        return
    if not isinstance(cache, KVCache):
        raise TypeError(f"cache: got {type(cache).__name__}, expected a KVCache, such as the output's cache")
    sequences = cache.batch_size
    if len(cache) >= ids.shape[1] or sequences not in (None, len(ids)):
        raise ValueError(
            f"cache: got {len(cache)} tokens of {sequences} sequences, expected fewer than the {ids.shape[1]} of "
            f"input_ids, of {len(ids)}; give all ids, those in the cache included"
        )


def read_lengths(model: Any, options: Options, ids: NDArray[np.int64], missing: int) -> tuple[Options, int]:
    """Return the options of prompts (B, T) with the lengths of their ids, and the most tokens of prompt and text.

    The limit is by max_new_tokens, else max_length, else 20 more than the prompt. This default stops at
    `max_position_embeddings`, as transformers' does; a stated length does not.

    missing: the positions of the prompt without an id, which stated lengths count.
    """
    prompts, prompt_length = ids.shape
    context_length = model.config.max_position_embeddings
    if options.pad_token_id is not None and options.pad_token_id >= model.config.vocab_size and prompts > 1:
        raise ValueError(f"pad_token_id: got {options.pad_token_id}, expected 0 to {model.config.vocab_size - 1}")
    stated = next((one.max_length for one in options.stopping_criteria or () if type(one) is MaxLengthCriteria), None)
    if stated is not None:
        options = replace(options, max_length=stated, max_new_tokens=None)
    elif options.max_length is not None:
        options = replace(options, max_length=options.max_length - missing)
    options = replace(options, min_length=max((options.min_length or 0) - missing, 0))
    if options.max_new_tokens is not None:
        limit = prompt_length + options.max_new_tokens
    elif options.max_length is not None:
        limit = options.max_length
    else:
        limit = min(prompt_length + 20, context_length or prompt_length + 20)
    if prompt_length >= limit:
        raise ValueError(
            f"input_ids: got {prompt_length} tokens, expected fewer than the length limit {limit}; raise max_length, "
            "or pass max_new_tokens"
        )
    if options.min_new_tokens is not None and prompt_length + options.min_new_tokens > limit:
        warn(f"min_new_tokens is {options.min_new_tokens}, but only {limit - prompt_length} fit: the text ends there")
    return options, limit


def read_seed(
    seed: int | Sequence[int] | None, generator: np.random.Generator | None, prompts: int, *, draws: bool
) -> int | tuple[int, ...]:
    """Return the seed of a call, or one for each prompt; from the generator or `set_seed` if none is given.

    A call that draws no random numbers has its arguments checked too. Its seed is 0, and the generator keeps its state.
    """
    if seed is not None and generator is not None:
        raise ValueError("seed, generator: got both, expected one of them")
    if generator is not None and not isinstance(generator, np.random.Generator):
        raise TypeError(f"generator: got {type(generator).__name__}, expected a numpy.random.Generator")
    given: int | tuple[int, ...] | None = None
    if isinstance(seed, list | tuple | np.ndarray):
        if np.shape(seed) != (prompts,):
            raise ValueError(f"seed: got shape {np.shape(seed)}, expected one integer, or ({prompts},), one a prompt")
        given = tuple(_one_seed(one) for one in seed)
    elif seed is not None:
        given = _one_seed(seed)
    if not draws:
        return 0
    if generator is not None:
        return int(generator.integers(0, 2**63))
    return random.getrandbits(63) if given is None else given


def set_seed(seed: int, deterministic: bool = False) -> None:
    """Seed the random choices of all calls without a seed of their own, and NumPy's global state.

    `deterministic` is ignored: with one seed, a machine draws the same each time.

    Raises:
        ValueError: a number outside 0 to 2**32 − 1.
        TypeError: no integer.
    """
    if _one_seed(seed) >= 2**32:
        raise ValueError(f"seed: got {seed}, expected 0 to 2**32 - 1, which NumPy takes")
    random.seed(int(seed))
    np.random.seed(int(seed))  # noqa: NPY002, as in transformers, for scripts that draw from it


def _one_seed(seed: Any) -> int:
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer):
        raise TypeError(f"seed: got {show_value(seed)}, expected an integer, 0 or more")
    if not 0 <= seed < 2**128:
        raise ValueError(f"seed: got {show_value(seed)}, expected an integer from 0 to below 2^128")
    return int(seed)
