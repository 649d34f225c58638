"""New weights, drawn as transformers draws them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from refdiff.model.weights.names import nest, parameter_shapes
from refdiff.model.weights.precision import compute_dtype, round_to

if TYPE_CHECKING:
    from refdiff.model.config import DiffLlamaConfig


def initialize(
    config: DiffLlamaConfig, architecture: str, *, seed: int = 0, dtype: str = "float32"
) -> dict[str, Any]:
    """Draw the weights of a new model: the distributions of transformers' ``_init_weights``, not its random numbers.

    Matrices and embeddings are normal with standard deviation ``initializer_range``, the embedding of the padding token is 0; biases are 0, norms 1;
    ``lambda_*`` are normal with ``lambda_std_dev``.

    Raises:
        ValueError: ``architecture`` is not one of ``ARCHITECTURES``.
    """
    shapes = parameter_shapes(config, architecture)
    return nest(draw(config, shapes.items(), seed=seed, dtype=dtype))


def draw(
    config: DiffLlamaConfig, shapes: Iterable[tuple[str, tuple[int, ...]]], *, seed: int, dtype: str
) -> dict[str, NDArray[Any]]:
    """Draw the named parameters in the order given."""
    generator = np.random.default_rng(seed)
    kind = compute_dtype(dtype)
    result = {}
    for name, shape in shapes:
        if name.endswith(".bias"):
            values = np.zeros(shape, kind)
        elif name.endswith("norm.weight"):
            values = np.ones(shape, kind)
        else:
            deviation = config.lambda_std_dev if ".lambda_" in name else config.initializer_range or 0.02
            values = generator.standard_normal(shape, kind.type)
            values *= kind.type(deviation)
        if name.endswith("embed_tokens.weight") and config.pad_token_id is not None:
            values[config.pad_token_id] = 0
        result[name] = round_to(values, dtype)
    return result
