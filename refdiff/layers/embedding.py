"""e = E[ids]: each token id picks its row of the table."""

from __future__ import annotations

from refdiff.arrays import Array, namespace


def embedding(ids: Array, weight: Array) -> Array:
    """Look up the embedding of each token.

    Equation:
        e_t = E[id_t]

    Used as:
        `embedding(ids, **params["model"]["embed_tokens"])`

    Shapes:
        ids (...) integers, weight (V, D) -> (..., D)

    Precision:
        exact; the dtype of `weight`.

    Raises:
        ValueError: `weight` is not a matrix.
        IndexError: an id is negative or not below V.
    """
    xp = namespace(ids, weight)
    if weight.ndim != 2:
        raise ValueError(f"embedding: weight has shape {tuple(weight.shape)}, but must be (V, D)")
    flat = xp.reshape(ids, (-1,))
    if flat.shape[0]:
        low, high = int(xp.min(flat)), int(xp.max(flat))
        if low < 0 or high >= weight.shape[0]:
            raise IndexError(
                f"embedding: token id {low if low < 0 else high} is outside 0 to {weight.shape[0] - 1}: "
                "do tokenizer and checkpoint belong together?"
            )
    return xp.reshape(xp.take(weight, flat, axis=0), (*ids.shape, weight.shape[1]))
