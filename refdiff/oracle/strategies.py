"""Hypothesis strategies for cases. They draw the structure and a seed for the numbers, so that failures shrink.

@given(oracle.strategies.cases(spec, "serving"))   # needs Hypothesis, which nothing else here does
def test_kernel(case): ...
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from refdiff.oracle.cases.fixed import PROFILES, Case, resolve_profile
from refdiff.oracle.cases.structure import LAYOUTS, PADDING, Structure, relaid
from refdiff.oracle.cases.values import draw
from refdiff.oracle.spec import Spec
from refdiff.oracle.spec.presets import PRESETS, merge_preset

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy

__all__ = ["LAYOUTS", "PROFILES", "Case", "Structure", "cases", "draw", "relaid", "specs", "structures"]

HEAD_DIMS = (8, 16, 32, 40, 64, 72, 96, 128, 192, 256)
LENGTHS = (0, 1, 2, 3, 5, 7, 15, 16, 17, 31, 33, 64, 65)


def specs(
    preset: str | None = None, *, head_dims: tuple[int, ...] = HEAD_DIMS[:3], **fields: Any
) -> SearchStrategy[Spec]:
    """Draw a spec: the preset, the numbers of key heads and query heads, head_dim, the layer.

    Args:
        preset: a preset's name, or None for any.
        fields: fields of `Spec` with fixed values, which are not drawn.

    Raises:
        ValueError: no preset has that name.
    """
    from hypothesis import strategies as st

    merge_preset({} if preset is None else {"preset": preset})

    def make(name: str, groups: int, n: int, ratio: int, head_dim: int, layer: int) -> Spec:
        shared = PRESETS[name].get("keys") == "shared"
        ratio = ratio if name in ("gda", "motif3") else 1
        n = 1 if name == "timm" else n
        dims = {
            "query_heads": groups * n * (1 if name == "attention" else ratio + 1),
            "key_heads": groups if shared else 2 * groups,
            "head_dim": head_dim,
            "layer": layer,
            "ratio": ratio,
        }
        return Spec.preset(name, **{**dims, **fields})

    names = st.sampled_from(list(PRESETS)) if preset is None else st.just(preset)
    small = st.integers(1, 3)
    return st.builds(make, names, small, small, st.integers(1, 4), st.sampled_from(head_dims), st.integers(0, 30))


def structures(profile: str = "discriminating", *, longest: int = 33) -> SearchStrategy[Structure]:
    """Draw the structure of a case of this profile.

    Raises:
        ValueError: no profile has that name.
    """
    from hypothesis import strategies as st

    profile = resolve_profile(profile)
    any_length = st.sampled_from([n for n in LENGTHS if n <= longest])
    any_positive = st.sampled_from([n for n in LENGTHS if 1 <= n <= longest])
    pairs = st.lists(st.tuples(any_length, any_length), min_size=1, max_size=4).map(tuple)
    if profile == "degenerate":
        return st.builds(Structure, batch=st.integers(0, 2), queries=any_length, keys=any_length)
    if profile == "layout":
        padded = st.builds(
            Structure,
            batch=st.integers(1, 3),
            queries=any_positive,
            keys=any_positive,
            padding=st.sampled_from(PADDING),
        )
        return st.one_of(padded, st.builds(Structure, packed=pairs), _paged(pairs))
    if profile == "serving":
        return _paged(pairs)
    if profile == "tiles":
        return st.builds(
            lambda B, T, S, window, bias: Structure(B, min(T, S), S, window=window, bias=bias),
            *(st.integers(1, 3), st.integers(1, min(5, longest)), st.sampled_from(_lengths_near_borders(longest))),
            *(st.none() | st.integers(1, longest), st.booleans()),
        )
    return st.builds(lambda B, T, S: Structure(B, T, max(T, S)), st.integers(1, 3), any_positive, any_positive)


def _lengths_near_borders(longest: int) -> list[int]:
    """Return the key counts up to `longest` that are within one of a tile size; if there are none, all counts."""
    near = {n for tile in (16, 32, 64, 128, 256) for n in (tile - 1, tile, tile + 1) if n <= longest}
    return sorted(near) or list(range(1, longest + 1))


def _paged(pairs: Any) -> SearchStrategy[Structure]:
    from hypothesis import strategies as st

    return st.builds(lambda lengths, page: Structure(pages=lengths, page=page), pairs, st.sampled_from([1, 4, 8, 16]))


def cases(
    spec: Spec | str | None = None, profile: str | None = None, *, dtype: str | None = None, longest: int = 33
) -> SearchStrategy[Case]:
    """Draw a case.

    Used as:
        `@given(oracle.strategies.cases(spec, "layout"))`

    Args:
        spec: a Spec; or a preset's name, or None for any preset, with drawn dimensions.
        profile: one of `PROFILES`, or None for any.
        dtype: the storage dtype of the inputs, or None for any.
        longest: the length of the longest sequence.

    Raises:
        ModuleNotFoundError: Hypothesis is not installed.
        ValueError: no preset has that name.
    """
    from hypothesis import strategies as st

    any_spec = st.just(spec) if isinstance(spec, Spec) else specs(spec)
    any_dtype = st.sampled_from(["float32", "bfloat16", "float16"]) if dtype is None else st.just(dtype)
    any_seed = st.integers(0, 999)

    def make(name: str, structure: Structure, spec: Spec, seed: int, dtype: str) -> Case:
        inputs = draw(spec, structure, PROFILES[name][0], seed, dtype)
        return Case(f"{name}-{structure.sizes}-{dtype}-{seed}", name, seed, dtype, spec, structure, inputs)

    def of_profile(name: str) -> Any:
        name = resolve_profile(name)
        return st.builds(make, st.just(name), structures(name, longest=longest), any_spec, any_seed, any_dtype)

    return st.one_of([of_profile(name) for name in PROFILES]) if profile is None else of_profile(profile)
