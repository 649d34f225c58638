"""e = E[ids]: each token id picks its row of the table."""

from __future__ import annotations

from refdiff.arrays import Array, device, namespace, take


def embedding(ids: Array, weight: Array) -> Array:
    """Look up the embedding of each token.

    Equation:
        e_t = E[id_t]

    Used as:
        `embedding(ids, **params["model"]["embed_tokens"])`

    Shapes:
        ids (...) integers, weight (V, D) -> (..., D)

    Raises:
        IndexError: an id is negative or not below V.
    """
    xp = namespace(ids, weight)
    if weight.ndim != 2:
        raise ValueError(f"embedding: weight: got shape {tuple(weight.shape)}, expected (V, D)")
    flat = xp.reshape(ids, (-1,))
    if flat.shape[0]:
        low, high = int(xp.min(flat)), int(xp.max(flat))
        if low < 0 or high >= weight.shape[0]:
            raise IndexError(
                f"embedding: ids: got {low if low < 0 else high}, expected 0 to {weight.shape[0] - 1}; use the "
                "tokenizer of this checkpoint"
            )
    return xp.reshape(take(weight, flat), (*ids.shape, weight.shape[1]))


def embedding_vjp(g: Array, ids: Array, weight: Array) -> tuple[None, Array]:
    """Pull a gradient back through `embedding`.

    Equation:
        ∂L/∂E[v] = Σ over t with id_t = v of g_t, written as a product with the one-hot matrix of the ids

    Shapes:
        g (..., D), ids (...), weight (V, D) -> None, (V, D)

    Precision:
        An infinite g or a NaN makes its whole column NaN, as the product multiplies it by the zeros of other ids too.
    """
    xp = namespace(g, ids, weight)
    V, D = weight.shape
    if tuple(g.shape) != (*ids.shape, D):
        raise ValueError(f"embedding_vjp: g: got shape {tuple(g.shape)}, expected {(*ids.shape, D)}, like the result")
    flat = xp.reshape(ids, (-1, 1))
    rows = xp.arange(V, dtype=flat.dtype, device=device(ids))
    one_hot = xp.astype(flat == rows, g.dtype)
    return None, one_hot.T @ xp.reshape(g, (-1, D))
