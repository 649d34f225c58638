"""Mistakes in the rotation of queries and keys."""

from __future__ import annotations

from typing import Any

from refdiff.arrays import Array
from refdiff.oracle.mistakes.catalogue import HF_FIRST, MOTIF, Mistake, mistake

ROPE_MISTAKES: list[Mistake] = []


@mistake(ROPE_MISTAKES, "rope", "rope kind", "F2", MOTIF)
def the_other_pairs_turn(right: Any, x: Array, cos: Array, sin: Array, *, interleaved: bool = False) -> Any:
    """Neighbors turned where halves are, and halves where neighbors are."""
    return right(x, cos, sin, interleaved=not interleaved)


@mistake(ROPE_MISTAKES, "rope", "rope kind")
def turned_the_other_way(right: Any, x: Array, cos: Array, sin: Array, **options: Any) -> Any:
    """By the opposite angle: what comes before counts as coming after."""
    return right(x, cos, -sin, **options)


@mistake(ROPE_MISTAKES, "rope", "rope kind")
def only_the_first_of_a_pair_turns(right: Any, x: Array, cos: Array, sin: Array, *, interleaved: bool = False) -> Any:
    """Half of the dimensions left as they are."""
    turned, n = right(x, cos, sin, interleaved=interleaved), cos.shape[-1]
    turned = turned + 0
    where = slice(1, 2 * n, 2) if interleaved else slice(n, 2 * n)
    turned[..., where] = x[..., where]
    return turned


@mistake(ROPE_MISTAKES, "rope", "rope dim")
def only_half_of_the_width_turns(right: Any, x: Array, cos: Array, sin: Array, *, interleaved: bool = False) -> Any:
    """A partial rotary factor of ½: the first half of each head turned, by the frequencies of heads of that size."""
    n = cos.shape[-1] // 2
    if n == 0:
        return right(x, cos, sin, interleaved=interleaved)
    return right(x, cos[..., : 2 * n : 2], sin[..., : 2 * n : 2], interleaved=interleaved)


@mistake(ROPE_MISTAKES, "rope_frequencies", "rope dim", "B6", HF_FIRST)
def frequencies_of_a_head_of_twice_the_size(
    right: Any, parameters: Any, head_dim: int, *rest: Any, **options: Any
) -> Any:
    """θ_i = base^(−i / d): the table of a head that is not split into two."""
    frequencies, scale = right(parameters, 2 * head_dim, *rest, **options)
    return frequencies[: head_dim // 2], scale


@mistake(ROPE_MISTAKES, "rope_frequencies", "rope base")
def another_base(right: Any, parameters: Any, *rest: Any, **options: Any) -> Any:
    """10 000 whatever the config says, or 500 000 where it says 10 000."""
    base = 500_000.0 if parameters.get("rope_theta") == 10_000.0 else 10_000.0
    return right({**parameters, "rope_theta": base}, *rest, **options)


@mistake(ROPE_MISTAKES, "rope_frequencies", "rope base")
def rope_type_left_out(right: Any, parameters: Any, *rest: Any, **options: Any) -> Any:
    """Frequencies of the default type for every type."""
    return right({"rope_type": "default", "rope_theta": parameters["rope_theta"]}, *rest, **options)


@mistake(ROPE_MISTAKES, "rope_cos_sin", "rope offset")
def positions_from_one(right: Any, positions: Array, *rest: Any, **options: Any) -> Any:
    """The first token at 1."""
    return right(positions + 1, *rest, **options)


@mistake(ROPE_MISTAKES, "rope_cos_sin", "rope offset", "B18", "https://github.com/microsoft/unilm/issues/1661")
def positions_from_zero_in_every_call(right: Any, positions: Array, *rest: Any, **options: Any) -> Any:
    """What is in the cache not counted: every call starts at position 0."""
    return right(positions - positions[:, :1], *rest, **options)


@mistake(ROPE_MISTAKES, "rope_cos_sin", "rope scale")
def scale_of_the_rotation_left_out(right: Any, positions: Array, frequencies: Any, scale: float, dtype: Any) -> Any:
    """cos and sin as they are, where yarn and longrope multiply them."""
    return right(positions, frequencies, 1.0, dtype)
