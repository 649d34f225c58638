"""What to say about an option of `generate` that is not there."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

_SIMILAR = 0.7  # of 1; below this, what looks nearest is as a rule something else

# Options of transformers' `generate` that refdiff leaves out, and what there is instead.
_LEFT_OUT = {
    "assistant_confidence_threshold": "",
    "assistant_early_exit": "",
    "begin_suppress_tokens": "",
    "bos_token_id": "the one of the config starts an empty prompt",
    "cache_implementation": "there is one kind of cache",
    "constraints": "",
    "custom_generate": "",
    "decoder_start_token_id": "",
    "diversity_penalty": "",
    "dola_layers": "",
    "encoder_no_repeat_ngram_size": "",
    "encoder_repetition_penalty": "",
    "exponential_decay_length_penalty": "",
    "force_words_ids": "",
    "forced_bos_token_id": "",
    "forced_eos_token_id": "",
    "generation_config": "give its entries as options, or put generation_config.json into the checkpoint's folder",
    "guidance_scale": "",
    "logits_processor": "",
    "low_memory": "",
    "min_length": "min_new_tokens counts the new tokens alone",
    "num_assistant_tokens": "",
    "num_beam_groups": "",
    "output_attentions": "call the model with the ids that were generated",
    "output_hidden_states": "call the model with the ids that were generated",
    "past_key_values": "give all ids as the prompt",
    "prefix_allowed_tokens_fn": "",
    "remove_invalid_values": "",
    "renormalize_logits": "",
    "stopping_criteria": "there are stop_strings, eos_token_id and max_time",
    "token_healing": "",
    "use_cache": "the cache is always used",
    "watermarking_config": "",
}


def unknown_option(name: str, known: Sequence[str]) -> TypeError:
    """The error about an option `name` that is not `known`: left out on purpose, misspelled, or like no other."""
    if name in _LEFT_OUT:
        instead = f"; {_LEFT_OUT[name]}" if _LEFT_OUT[name] else ""
        return TypeError(f"generate() got {name!r}, an option of transformers that refdiff does not have{instead}")
    near = difflib.get_close_matches(name, known, n=1, cutoff=_SIMILAR)
    hint = f": did you mean {near[0]!r}?" if near else f"; the known ones are {', '.join(known)}"
    return TypeError(f"generate() got an unknown option {name!r}{hint}")
