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
    xp = namespace(ids)
    _check("embedding", ids, weight)
    return xp.reshape(take(weight, xp.reshape(ids, (-1,))), (*ids.shape, weight.shape[1]))


def _check(name: str, ids: Array, weight: Array) -> None:
    """Raise ValueError unless `weight` is (V, D), and IndexError where an id has no row in it."""
    xp = namespace(ids)
    if weight.ndim != 2:
        raise ValueError(f"{name}: weight: got shape {tuple(weight.shape)}, expected (V, D)")
    if 0 not in ids.shape:
        numbers = xp.astype(ids, xp.int64)  # torch has no least number of uint64
        low, high = int(xp.min(numbers)), int(xp.max(numbers))
        if low < 0 or high >= weight.shape[0]:
            raise IndexError(
                f"{name}: ids: got {low if low < 0 else high}, expected 0 to {weight.shape[0] - 1}; use the "
                "tokenizer of this checkpoint"
            )


def embedding_vjp(g: Array, ids: Array, weight: Array) -> tuple[None, Array]:
    """Pull a gradient back through `embedding`.

    Equation:
        ∂L/∂E[v] = Σ over t with id_t = v of g_t, written as a product with the one-hot matrix of the ids.
        An infinite g or a NaN makes its whole column NaN, as the product multiplies it by the zeros of other ids too.

    Shapes:
        g (..., D), ids (...), weight (V, D) -> None, (V, D)

    Raises:
        IndexError: an id is negative or not below V.
    """
    xp = namespace(g, ids, weight)
    _check("embedding_vjp", ids, weight)
    V, D = weight.shape
    if tuple(g.shape) != (*ids.shape, D):
        raise ValueError(f"embedding_vjp: g: got shape {tuple(g.shape)}, expected {(*ids.shape, D)}, like the result")
    flat = xp.reshape(ids, (-1, 1))
    rows = xp.arange(V, dtype=flat.dtype, device=device(ids))
    one_hot = xp.astype(flat == rows, g.dtype)
    return None, one_hot.T @ xp.reshape(g, (-1, D))
