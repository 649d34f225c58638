"""Sixty-six random checkpoints, written by transformers: what they vary in, and how each is made.

Every choice below is dealt like a pack of cards: each value of each list appears before any appears twice, in an order
drawn from one seed. So a value cannot be missed by chance, and two lists do not move in step.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
import transformers

SEED = 20_241_001
COUNT = 66
Choice = TypeVar("Choice")

ARCHITECTURES = (
    "DiffLlamaForCausalLM",
    "DiffLlamaModel",
    "DiffLlamaForCausalLM",
    "DiffLlamaForSequenceClassification",
    "DiffLlamaForCausalLM",
    "DiffLlamaForTokenClassification",
    "DiffLlamaForSequenceClassification",
    "DiffLlamaForQuestionAnswering",
)
# every name transformers knows but xielu, which has three weights of its own
ACTIVATIONS = tuple(sorted(set(transformers.activations.ACT2CLS) - {"xielu"}))
# query heads, key/value heads, head_dim, hidden size; None: the file leaves head_dim out
HEADS = (
    (2, 2, 8, 24), (4, 2, 10, 32), (6, 2, 6, 20), (8, 2, 4, 28), (4, 4, None, 32), (6, 6, 8, 18), (8, 4, 6, 40),
    (12, 4, 4, 36), (8, 8, None, 64), (4, 2, 16, 48), (16, 4, 6, 30), (2, 2, 12, 22), (6, 2, 14, 26),
    (8, 4, 1, 34),
)  # fmt: skip
INNER = (37, 53, 29, 64)
LAYERS = (2, 3, 1, 2)
EPS = (1e-5, 1e-6, 1e-3, 1e-9, 0.1)
DTYPES = ("float32", "bfloat16", "float16", "float64")
VOCABULARY = (41, 97, 67)
THETA = (10_000.0, 500_000.0, 100.0, 1_000_000.0)
# how far exp(λ_q1·λ_k1) − exp(λ_q2·λ_k2) is from 0: the initial 0.1, and far more on either side
LAMBDA = ("initial", "large", "negative", "random")
LABELS = (
    (1, None),
    (3, None),
    (4, "multi_label_classification"),
    (2, "single_label_classification"),
    (3, "regression"),
    (2, None),
    (5, "multi_label_classification"),
)
PADDING = (0, 5, 3, None)
# config.json as transformers 5 writes it, or as the published checkpoints have it
SPELLING = ("rope_parameters", "rope_scaling with rope_type", "rope_scaling with type", "rope_parameters")


def _longrope(head_dim: int, rng: np.random.Generator) -> dict[str, Any]:
    half = max(head_dim // 2, 1)
    return {
        "rope_type": "longrope",
        "short_factor": [float(x) for x in rng.uniform(1.0, 1.5, half)],
        "long_factor": [float(x) for x in rng.uniform(1.5, 6.0, half)],
    }


# Each takes (head_dim, rng) and gives rope_parameters less rope_theta, and max_position_embeddings. The inputs of the
# tests have about 12 positions and reach 40, so limits of 8 to 16 are crossed by some of them.
Rope = Callable[[int, np.random.Generator], tuple[dict[str, Any], int]]


def _rope(rope_type: str, longest: int, **fields: Any) -> Rope:
    of = _longrope if rope_type == "longrope" else lambda d, rng: {"rope_type": rope_type}
    named = {"original_max_position_embeddings" if name == "original" else name: x for name, x in fields.items()}
    return lambda d, rng: (of(d, rng) | named, longest)


ROPES: tuple[Rope, ...] = (
    _rope("default", 64),
    _rope("linear", 64, factor=2.5),
    _rope("dynamic", 8, factor=2.0),
    _rope("yarn", 64, factor=4.0, original=16),
    _rope("longrope", 40, factor=4.0, original=10),
    _rope("llama3", 256, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original=32),
    _rope("proportional", 64, partial_rotary_factor=0.5),
    _rope("dynamic", 64, factor=3.5),
    _rope("yarn", 32, factor=4.0, attention_factor=0.7),
    _rope("yarn", 192, factor=8.0, beta_fast=8.0, beta_slow=0.5, original=24),
    _rope("yarn", 256, factor=16.0, mscale=0.8, mscale_all_dim=0.4, original=16),
    _rope("yarn", 256, factor=4.0, truncate=False, mscale=0.8, original=64),
    _rope("yarn", 60, factor=None, original=12),
    _rope("longrope", 64, original=16),
    _rope("longrope", 14, factor=2.0, attention_factor=1.3, original=7),
    _rope("llama3", 2000, factor=32.0, low_freq_factor=1.0, high_freq_factor=2.0, original=1000),
    _rope("proportional", 64, partial_rotary_factor=0.25, factor=2.0),
    _rope("proportional", 64, partial_rotary_factor=1.0),
    _rope("default", 6),
)
BOTH = (False, True)
COLUMNS: dict[str, Sequence[Any]] = {
    "architecture": ARCHITECTURES, "activation": ACTIVATIONS, "heads": HEADS, "inner": INNER, "layers": LAYERS,
    "eps": EPS, "dtype": DTYPES, "vocabulary": VOCABULARY, "theta": THETA, "lambdas": LAMBDA, "labels": LABELS,
    "padding": PADDING, "spelling": SPELLING, "rope": ROPES, "bias": BOTH, "tied": (False, True, True), "sharded": BOTH,
}  # fmt: skip
"""What is dealt, in this order."""


@dataclass(frozen=True)
class Recipe:
    """What one checkpoint is made of."""

    index: int
    architecture: str
    config: dict[str, Any]
    dtype: str
    sharded: bool
    lambdas: str
    spelling: str

    def __str__(self) -> str:
        head, rope = self.architecture.removeprefix("DiffLlama"), self.config["rope_parameters"]["rope_type"]
        return f"{self.index}-{head}-{rope}-{self.config['hidden_act']}-{self.dtype}"


def _deal(values: Sequence[Choice], count: int, rng: np.random.Generator) -> list[Choice]:
    """`count` values: every one of them once in random order, then again, and again."""
    order: list[int] = []
    while len(order) < count:
        order.extend(rng.permutation(len(values)).tolist())
    return [values[i] for i in order[:count]]


def recipes(count: int = COUNT, seed: int = SEED) -> list[Recipe]:
    """The same recipes on every machine."""
    rng = np.random.default_rng(seed)
    dealt = {name: _deal(values, count, rng) for name, values in COLUMNS.items()}
    return [_recipe(i, {name: values[i] for name, values in dealt.items()}, rng) for i in range(count)]


def _recipe(index: int, of: dict[str, Any], rng: np.random.Generator) -> Recipe:
    (heads, kv_heads, head_dim, hidden), (num_labels, problem_type) = of["heads"], of["labels"]
    parameters, max_positions = of["rope"](head_dim or hidden // heads, rng)
    if head_dim == 1 and parameters["rope_type"] in ("yarn", "proportional"):  # transformers makes heads of size 0
        head_dim = 2
    architecture = of["architecture"]
    config = {
        "vocab_size": of["vocabulary"], "hidden_size": hidden, "intermediate_size": of["inner"],
        "num_hidden_layers": of["layers"], "num_attention_heads": heads, "num_key_value_heads": kv_heads,
        "hidden_act": of["activation"], "max_position_embeddings": max_positions, "rms_norm_eps": of["eps"],
        "attention_bias": of["bias"], "tie_word_embeddings": of["tied"] and architecture == "DiffLlamaForCausalLM",
        "pad_token_id": of["padding"], "bos_token_id": 1, "eos_token_id": 2,
        "rope_parameters": parameters | {"rope_theta": of["theta"]},
    }  # fmt: skip
    if head_dim is not None:
        config["head_dim"] = head_dim
    if architecture in ("DiffLlamaForSequenceClassification", "DiffLlamaForTokenClassification"):
        config["num_labels"] = num_labels
    if architecture == "DiffLlamaForSequenceClassification":
        config["problem_type"] = problem_type
        # without a padding token transformers refuses batches; one such checkpoint is tested by itself
        config["pad_token_id"] = of["padding"] or 0
    return Recipe(index, architecture, config, of["dtype"], of["sharded"], of["lambdas"], of["spelling"])


def _lambda_vectors(style: str, head_dim: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """λ_q1, λ_k1, λ_q2, λ_k2 whose two products are about what the style says."""
    q1, k1, q2, k2 = (rng.normal(0.0, 0.1, head_dim) for _ in range(4))
    if style == "random":
        q1, k1, q2, k2 = (v * 10 * 1.2 / math.sqrt(head_dim) ** 0.5 for v in (q1, k1, q2, k2))
    elif style == "large":
        q1, k1 = np.full(head_dim, 1.0) + q1, np.full(head_dim, 1.4 / head_dim) + 0.1 * k1
    elif style == "negative":
        q2, k2 = np.full(head_dim, 1.0) + q2, np.full(head_dim, 1.1 / head_dim) + 0.1 * k2
    return {"lambda_q1": q1, "lambda_k1": k1, "lambda_q2": q2, "lambda_k2": k2}


def random_weights(shapes: dict[str, tuple[int, ...]], lambdas: str, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Weights under which every part of the model matters.

    Norm weights are not ones; queries and keys are large enough for uneven attention; gates reach past the bends of
    gelu_10 and relu6; embedding rows run from 10⁻⁴ to 3, so that for some tokens ε is most of what is under the root.
    """
    made: dict[str, np.ndarray] = {}
    for name, shape in shapes.items():
        kind = name.rpartition(".")[0].rpartition(".")[2]
        if "lambda_" in name:
            prefix = name.rpartition(".")[0]
            if f"{prefix}.lambda_q1" not in made:
                made |= {f"{prefix}.{key}": v for key, v in _lambda_vectors(lambdas, shape[0], rng).items()}
        elif kind == "embed_tokens":
            made[name] = rng.normal(size=shape) * 10.0 ** rng.uniform(-4, 0.5, (shape[0], 1))
        elif kind == "act_fn":
            made[name] = rng.normal(size=shape)
        elif kind.endswith("norm"):
            made[name] = 1.0 + 0.5 * rng.normal(size=shape)
        elif name.endswith(".bias"):
            made[name] = 0.3 * rng.normal(size=shape)
        else:
            gain = {"q_proj": 1.6, "k_proj": 1.6, "gate_proj": 5.0}.get(kind, 1.0)
            made[name] = gain / math.sqrt(shape[1]) * rng.normal(size=shape)
    return made


def _respell(path: Path, spelling: str) -> None:
    """Rewrite config.json as files from before transformers 5 have it."""
    if spelling == "rope_parameters":
        return
    config = json.loads(path.read_text(encoding="utf-8"))
    rope = config.pop("rope_parameters")
    config["rope_theta"] = rope.pop("rope_theta")
    if "dtype" in config:
        config["torch_dtype"] = config.pop("dtype")
    if spelling == "rope_scaling with type":
        rope["type"] = rope.pop("rope_type")
    config["rope_scaling"] = None if rope in ({"rope_type": "default"}, {"type": "default"}) else rope
    path.write_text(json.dumps(config, indent=2), encoding="utf-8")


def write(recipe: Recipe, folder: Path) -> Path:
    """Make the checkpoint with transformers' save_pretrained."""
    rng = np.random.default_rng((SEED, recipe.index))
    config = transformers.DiffLlamaConfig(**json.loads(json.dumps(recipe.config)))
    model = getattr(transformers, recipe.architecture)(config).double()
    parameters = dict(model.named_parameters())
    weights = random_weights({name: tuple(p.shape) for name, p in parameters.items()}, recipe.lambdas, rng)
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(torch.from_numpy(weights[name]))
    model.to(getattr(torch, recipe.dtype)).save_pretrained(folder, max_shard_size="4KB" if recipe.sharded else "5GB")
    _respell(folder / "config.json", recipe.spelling)
    return folder
