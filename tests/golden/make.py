"""Write the golden values again: `python -m tests.golden.make` (needs the extra `parity`; takes some seconds).

Each case is a folder: a tiny checkpoint as transformers saves it, and `expected.safetensors` with the inputs and the
outputs of some calls, computed in float64 by transformers with its float32 casts taken out. Names in that file are
`call/in/argument` and `call/out/field`. Padded calls go through transformers' default attention (sdpa), which gives
zeros to positions that see nothing; its eager attention, used where attention rows are asked for, averages over
everything there. `golden.json` records the versions, the seed, the names of activations, and what else a call needs.
tests/test_golden.py holds refdiff to these values without torch; tests/parity/test_golden_reproducible.py writes them
anew and compares.
"""

from __future__ import annotations

import itertools
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from safetensors.numpy import save_file
from transformers import DynamicCache

from tests.parity.checkpoints import ACTIVATIONS, Recipe, write
from tests.parity.float64_transformers import Peer, float64_by_default, float64_peer, to_numpy, to_torch

SEED = 20_261_124
FOLDER = Path(__file__).parent
PAD = 3

LONG = {
    "rope_type": "longrope", "short_factor": [1.0, 1.1, 1.3], "long_factor": [1.5, 2.5, 4.0], "factor": 4.0,
    "original_max_position_embeddings": 6,
}  # fmt: skip
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 100.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}  # fmt: skip
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
YARN_ALL = {
    **YARN, "rope_theta": 100.0, "factor": 8.0, "beta_fast": 2.0, "beta_slow": 0.25, "mscale": 0.8,
    "mscale_all_dim": 0.4, "truncate": False,
}  # fmt: skip


def recipe(index: int, architecture: str, rope: dict[str, Any], *, dtype: str = "float32", sharded: bool = False,
           lambdas: str = "random", spelling: str = "rope_parameters", **fields: Any) -> Recipe:  # fmt: skip
    config = {
        "vocab_size": 43, "hidden_size": 16, "intermediate_size": 19, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 6, "hidden_act": "silu", "max_position_embeddings": 64,
        "rms_norm_eps": 1e-5, "attention_bias": False, "tie_word_embeddings": False, "pad_token_id": PAD,
        "bos_token_id": 1, "eos_token_id": 2, "rope_parameters": {"rope_theta": 10000.0} | rope,
    }  # fmt: skip
    return Recipe(SEED + index, architecture, config | fields, dtype, sharded, lambdas, spelling)


LM, SEQUENCE = "DiffLlamaForCausalLM", "DiffLlamaForSequenceClassification"
CASES = {
    "lm-default-biases": recipe(0, LM, {"rope_type": "default"}, attention_bias=True, num_key_value_heads=4),
    "lm-linear-bfloat16-tied": recipe(
        1, LM, {"rope_type": "linear", "factor": 2.5}, dtype="bfloat16", tie_word_embeddings=True, hidden_act="gelu"
    ),
    "lm-dynamic-past-its-limit": recipe(
        2, LM, {"rope_type": "dynamic", "factor": 2.0}, max_position_embeddings=6, lambdas="large"
    ),
    "lm-yarn-sharded": recipe(3, LM, YARN, sharded=True, num_attention_heads=6, lambdas="negative", rms_norm_eps=0.01),
    "lm-yarn-every-field": recipe(4, LM, YARN_ALL, max_position_embeddings=128, hidden_act="relu2", head_dim=12),
    "lm-longrope-float16": recipe(5, LM, LONG, dtype="float16", max_position_embeddings=24, hidden_act="gelu_new"),
    "lm-llama3-as-published": recipe(
        6,
        LM,
        LLAMA3,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        spelling="rope_scaling with rope_type",
        num_attention_heads=8,
        head_dim=8,
    ),
    "lm-proportional-float64": recipe(
        7,
        LM,
        {"rope_type": "proportional", "partial_rotary_factor": 0.5, "factor": 2.0},
        dtype="float64",
        hidden_act="quick_gelu",
        head_dim=8,
    ),
    "model": recipe(8, "DiffLlamaModel", {"rope_type": "default"}, spelling="rope_scaling with type", head_dim=4),
    "model-longrope-attention-factor": recipe(
        14, "DiffLlamaModel", LONG | {"attention_factor": 1.3}, max_position_embeddings=24, attention_bias=True
    ),
    "sequence-one-of-three": recipe(9, SEQUENCE, {"rope_type": "default"}, num_labels=3),
    "sequence-any-of-four": recipe(
        10, SEQUENCE, YARN, num_labels=4, problem_type="multi_label_classification", attention_bias=True
    ),
    "sequence-regression": recipe(11, SEQUENCE, {"rope_type": "default"}, num_labels=1, hidden_act="tanh"),
    "tokens": recipe(12, "DiffLlamaForTokenClassification", LLAMA3, num_labels=5, max_position_embeddings=256),
    "answers": recipe(13, "DiffLlamaForQuestionAnswering", {"rope_type": "default"}, dtype="bfloat16"),
}
BATCH, LENGTH = 2, 8


class Case:
    """One folder in the making."""

    def __init__(self, made: Recipe, folder: Path) -> None:
        self.recipe = made
        self.folder = write(made, folder)
        self.rng = np.random.default_rng((SEED, made.index))
        self.arrays: dict[str, np.ndarray] = {}
        self.generated: dict[str, dict[str, Any]] = {}

    def peer(self, attention: str = "eager") -> Peer:
        """A new one each time: with dynamic RoPE transformers remembers lengths."""
        return float64_peer(self.folder, self.recipe.architecture, attention=attention)

    def ids(self, length: int = LENGTH) -> np.ndarray:
        return self.rng.choice(np.setdiff1d(np.arange(self.recipe.config["vocab_size"]), [PAD]), (BATCH, length))

    def labels(self, ids: np.ndarray, mask: np.ndarray | None = None) -> dict[str, np.ndarray]:
        """Labels of the kind that the class takes; −100 on padding, on what follows it at once, and here and there."""
        config, architecture = self.recipe.config, self.recipe.architecture
        ignored = self.rng.random(ids.shape) < 0.2
        if mask is not None:
            ignored |= (mask == 0) | (np.cumsum(mask, axis=1) == 1)
        if architecture == LM:
            return {"labels": np.where(ignored, -100, ids)}
        if architecture == "DiffLlamaForTokenClassification":
            return {"labels": np.where(ignored, -100, self.rng.integers(0, config["num_labels"], ids.shape))}
        if architecture == "DiffLlamaForQuestionAnswering":
            # 8 is outside, and does not count
            return {"start_positions": np.array([2, 8]), "end_positions": np.array([5, 1])}
        if architecture == SEQUENCE:
            several = config.get("problem_type") == "multi_label_classification"
            if several:
                return {"labels": self.rng.integers(0, 2, (BATCH, config["num_labels"])).astype(np.float64)}
            if config["num_labels"] == 1:
                return {"labels": self.rng.normal(size=BATCH)}
            return {"labels": self.rng.integers(0, config["num_labels"], BATCH)}
        return {}

    def record(self, call: str, inputs: dict[str, np.ndarray], output: Any) -> None:
        self.arrays |= {f"{call}/in/{name}": value for name, value in inputs.items()}
        for name, value in vars(output).items():
            if isinstance(value, np.ndarray):
                self.arrays[f"{call}/out/{name}"] = value
            elif isinstance(value, tuple):
                self.arrays |= {f"{call}/out/{name}/{i}": each for i, each in enumerate(value)}

    def prompt(self) -> None:
        ids = self.ids()
        inputs = {"input_ids": ids} | self.labels(ids)
        self.record("prompt", inputs, self.peer()(**inputs, output_hidden_states=True, output_attentions=True))

    def padded(self, call: str, spans: list[tuple[int, int]]) -> None:
        mask = np.zeros((BATCH, LENGTH), dtype=np.int64)
        for row, (start, end) in enumerate(spans):
            mask[row, start:end] = 1
        ids = np.where(mask == 1, self.ids(), PAD)
        inputs = {"input_ids": ids, "attention_mask": mask} | self.labels(ids, mask)
        self.record(call, inputs, self.peer("sdpa")(**inputs, output_hidden_states=call == "padded left"))

    def masked(self) -> None:
        seen = self.rng.random((BATCH, 1, LENGTH, LENGTH)) < 0.6
        seen[:, :, 2] = False
        inputs = {"input_ids": self.ids(), "attention_mask": seen}
        self.record("4-D mask", inputs, self.peer("sdpa")(**inputs))
        shape = (BATCH, self.recipe.config["num_attention_heads"], LENGTH, LENGTH)
        hidden = (self.rng.random(shape) < 0.4) & ~np.eye(LENGTH, dtype=bool)
        inputs = {"input_ids": self.ids(), "attention_mask": np.where(hidden, -np.inf, self.rng.normal(size=shape))}
        self.record("4-D bias", inputs, self.peer()(**inputs))

    def packed(self) -> None:
        inputs = {
            "input_ids": self.ids(),
            "position_ids": np.array([[0, 1, 2, 0, 1, 2, 3, 0], [0, 1, 2, 3, 4, 0, 1, 2]]),
        }
        self.record("packed", inputs, self.peer()(**inputs, use_cache=False))

    def embedded(self) -> None:
        inputs = {"inputs_embeds": self.rng.normal(size=(BATCH, 4, self.recipe.config["hidden_size"]))}
        self.record("embedded", inputs, self.peer()(**inputs))

    def cached(self) -> None:
        """A prefill in two chunks, then tokens one by one: the outputs of all calls side by side."""
        ids, peer = self.ids(), self.peer()
        cache = DynamicCache(config=peer.model.config)
        parts = [peer(ids[:, a:b], cache=cache, use_cache=True) for a, b in itertools.pairwise(CACHED)]
        name = "logits" if self.recipe.architecture == LM else "last_hidden_state"
        self.arrays["cached/in/input_ids"] = ids
        self.arrays[f"cached/out/{name}"] = np.concatenate([getattr(part, name) for part in parts], axis=1)

    def generate(self, call: str, **options: Any) -> None:
        mask = np.ones((BATCH, 6), dtype=np.int64)
        mask[0, :2] = 0
        ids = np.where(mask == 1, self.ids(6), PAD)
        options = {"max_new_tokens": 10, "do_sample": False, "pad_token_id": PAD} | options
        model: Any = self.peer().model
        with float64_by_default(), torch.no_grad():
            free = model.generate(to_torch(ids), attention_mask=to_torch(mask), eos_token_id=0, **options)
            # an end that comes up, so that one row ends before the other
            options["eos_token_id"] = int(free[0, 6 + 3])
            model = self.peer().model
            tokens = model.generate(to_torch(ids), attention_mask=to_torch(mask), **options)
        self.arrays |= {
            f"{call}/in/input_ids": ids,
            f"{call}/in/attention_mask": mask,
            f"{call}/tokens": to_numpy(tokens),
        }
        self.generated[call] = options


CACHED = (0, 3, 5, 6, 7, 8)


def make(folder: Path) -> None:
    """Write every case and golden.json into the folder; what was there of them goes."""
    torch.set_num_threads(1)
    cases: dict[str, Any] = {}
    for name, made in CASES.items():
        shutil.rmtree(folder / name, ignore_errors=True)
        case = Case(made, folder / name)
        case.prompt()
        case.padded("padded left", [(3, LENGTH), (0, LENGTH)])
        case.padded("padded right", [(0, LENGTH), (0, 5)])
        if made.architecture == LM:
            case.packed()
            case.cached()
            case.generate("greedy")
            case.generate("beams", num_beams=3, length_penalty=0.7)
        if made.architecture == "DiffLlamaModel":
            case.masked()
            case.embedded()
            case.cached()
        save_file(
            {key: np.array(a, order="C") for key, a in case.arrays.items()}, folder / name / "expected.safetensors"
        )
        cases[name] = {"architecture": made.architecture, "generate": case.generated}
    record = {
        "transformers": transformers.__version__,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": sys.version.split()[0],
        "seed": SEED,
        "activations": ACTIVATIONS,
        "cached": CACHED,
        "cases": cases,
    }
    (folder / "golden.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    make(FOLDER)
