"""Write generation.json again: `python -m tests.golden.make_generation` (needs the extra `parity`).

What transformers' `generate` answers for some of the checkpoints beside it, in float64 without float32 casts: greedy
decoding and beam search, tokens only. tests/generation/test_golden.py holds refdiff to it without torch;
tests/parity/test_generation.py writes it anew and compares.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from tests.parity.float64_transformers import float64_peer

FOLDER = Path(__file__).parent
SEED = 20_261_124
CHECKPOINTS = ("lm-default-biases", "lm-linear-bfloat16-tied", "lm-proportional-float64", "lm-yarn-every-field")
PAD = 1
ENDS = [2, 5, 8, 11, 14]
SHARED: dict[str, Any] = {"max_new_tokens": 10, "eos_token_id": ENDS, "pad_token_id": PAD}
CALLS: list[dict[str, Any]] = [
    {},
    {"repetition_penalty": 1.4},
    {"no_repeat_ngram_size": 2},
    {"min_new_tokens": 6, "suppress_tokens": [20, 21, 22, 23, 24]},
    {"bad_words_ids": [[9], [10, 12], [30]], "sequence_bias": [[[17], 2.0], [[17, 18], 5.0]]},
    {"num_beams": 2},
    {"num_beams": 4},
    {"num_beams": 4, "num_return_sequences": 4},
    {"num_beams": 4, "early_stopping": True, "num_return_sequences": 2},
    {"num_beams": 4, "early_stopping": "never"},
    {"num_beams": 3, "early_stopping": "never", "length_penalty": -1.0, "num_return_sequences": 3},
    {"num_beams": 4, "length_penalty": 2.5, "num_return_sequences": 3},
    {"num_beams": 2, "length_penalty": -1.5, "num_return_sequences": 2},
    {"num_beams": 3, "repetition_penalty": 1.4, "no_repeat_ngram_size": 2, "num_return_sequences": 3},
    {"num_beams": 2, "eos_token_id": 2, "early_stopping": True, "length_penalty": 0.0},
    {"num_beams": 4, "eos_token_id": None},
]


def prompts(index: int) -> tuple[np.ndarray, np.ndarray]:
    """Three prompts of 5, 6 and 3 tokens, padded on the left, and their mask."""
    ids = np.random.default_rng((SEED, index)).integers(15, 43, (3, 6))
    mask = np.ones_like(ids)
    mask[0, :1] = mask[2, :3] = 0
    ids[mask == 0] = PAD
    return ids, mask


def answers() -> list[dict[str, Any]]:
    """Every call of every checkpoint, with what transformers answers."""
    made = []
    for index, name in enumerate(CHECKPOINTS):
        model = float64_peer(FOLDER / name, "DiffLlamaForCausalLM", attention="sdpa").model
        model.generation_config = transformers.GenerationConfig()
        ids, mask = prompts(index)
        for options in CALLS:
            got = model.generate(torch.tensor(ids), attention_mask=torch.tensor(mask), **SHARED | options)
            made.append(
                {
                    "checkpoint": name,
                    "input_ids": ids.tolist(),
                    "attention_mask": mask.tolist(),
                    "options": SHARED | options,
                    "sequences": got.tolist(),
                }
            )
    return made


def main() -> None:
    """Write the file."""
    content = {
        "transformers": transformers.__version__,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "seed": SEED,
        "calls": answers(),
    }
    (FOLDER / "generation.json").write_text(json.dumps(content) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
