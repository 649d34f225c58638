"""New weights, drawn from the distributions that transformers draws from."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refdiff.model.config import DiffLlamaConfig
from refdiff.model.variants import VARIANTS
from refdiff.model.weights.names import nest, parameter_shapes
from refdiff.model.weights.precision import compute_dtype, round_to


def initialize(config: DiffLlamaConfig, architecture: str, *, seed: int = 0, dtype: str = "float32") -> dict[str, Any]:
    """Draw the weights of a new model, as transformers' `_init_weights` does (other random numbers, same law).

    Matrices and embeddings are normal with standard deviation `initializer_range`, but the padding token's embedding
    is 0; biases are 0, norms 1 and prelu's weights 0.25; what a variant has beside its projections starts as its file
    says. The same seed gives the same weights on every machine.

    Raises:
        ValueError: `architecture` or `dtype` is none of those known.
    """
    return nest(draw(config, parameter_shapes(config, architecture).items(), seed=seed, dtype=dtype))


def draw(
    config: DiffLlamaConfig, shapes: Iterable[tuple[str, tuple[int, ...]]], *, seed: int, dtype: str
) -> dict[str, NDArray[Any]]:
    """Draw the named parameters, in the order given; see `initialize`."""
    generator = np.random.default_rng(seed)
    kind = compute_dtype(dtype)
    own = VARIANTS[config.variant].parameters(config)
    result = {}
    for name, shape in shapes:
        # A range of 0 means 0.02, as in transformers.
        mean, deviation = 0.0, config.initializer_range or 0.02
        if name.endswith(".bias"):
            deviation = 0.0
        elif name.endswith("norm.weight"):
            mean, deviation = 1.0, 0.0
        elif name.endswith("act_fn.weight"):
            mean, deviation = 0.25, 0.0
        elif (parameter := own.get(name.rpartition(".self_attn.")[2])) is not None:
            mean, deviation = parameter.mean, deviation if parameter.deviation is None else parameter.deviation
        if deviation:
            values = generator.standard_normal(shape, kind.type)
            values *= kind.type(deviation)
            values += kind.type(mean)
        else:
            values = np.full(shape, mean, kind)
        if name.endswith("embed_tokens.weight") and config.pad_token_id is not None:
            values[config.pad_token_id] = 0
        result[name] = round_to(values, dtype)
    return result
