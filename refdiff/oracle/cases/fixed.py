"""Fixed lists of cases by profile: the same seed gives the same cases on every machine."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from refdiff.messages import did_you_mean
from refdiff.oracle.cases.structure import Structure
from refdiff.oracle.cases.values import draw, round_to_storage
from refdiff.oracle.inputs import is_layer
from refdiff.oracle.inputs.resolve import resolve_spec
from refdiff.oracle.inputs.resolve import small_spec as small_spec
from refdiff.oracle.inputs.sequences import Inputs, Numpy
from refdiff.oracle.mistakes import Mistake
from refdiff.oracle.mistakes.listed import blind_spots
from refdiff.oracle.printing import array_summary
from refdiff.oracle.spec import Spec
from refdiff.oracle.truth.attention_operands import padded_queries, zero_padded
from refdiff.oracle.truth.forward import out_shape

LONGEST_WINDOW = 4096
"""A structure keeps its own mask if the window of the spec is longer."""
_NATURAL = (Structure(2, 16, 24), Structure(1, 17, 17))
PROFILES: dict[str, tuple[str, tuple[Structure, ...]]] = {
    "natural": ("natural", _NATURAL),
    "discriminating": (
        "discriminating",
        (Structure(2, 9, 14, padding="left"), Structure(2, 11, 11), Structure(1, 7, 4), Structure(1, 6, 13, hidden=24)),
    ),
    "cancellation": ("cancellation", _NATURAL),
    "tiny_values": ("tiny_values", (Structure(2, 9, 14), Structure(1, 11, 11))),
    "extreme": ("extreme", _NATURAL),
    "degenerate": (
        "degenerate",
        (
            *(Structure(1, 1, 1), Structure(0, 3, 5), Structure(2, 0, 5), Structure(1, 3, 0), Structure(2, 5, 2)),
            *(Structure(2, 4, 4), Structure(1, 1, 17, padding="left")),
        ),
    ),
    "layout": (
        "discriminating",
        (
            Structure(packed=((5, 5), (0, 3), (4, 7), (2, 0), (1, 1))),
            Structure(packed=((6, 6), (0, 0), (9, 9)), hidden=24),
            *(Structure(3, 7, 11, padding="right"), Structure(3, 7, 11, padding="left")),
            Structure(pages=((1, 13), (1, 0), (1, 6)), page=5),
            *(Structure(3, 9, 9, padding="left"), Structure(2, 7, 7, unseen="padding")),
            *(Structure(2, 7, 7, unseen="mask"), Structure(2, 7, 7, unseen="bias")),
        ),
    ),
    "serving": (
        "discriminating",
        (
            Structure(pages=((1, 17), (1, 3), (1, 31)), page=8),  # decode
            Structure(pages=((9, 20), (1, 12), (5, 5)), page=8),  # chunked prefill and decoding in one batch
            Structure(pages=((4, 11), (4, 21)), page=4),  # four tokens to be verified
            Structure(2, 1, 19),
            Structure(pages=((1, 16), (1, 11)), page=8),  # the last page of the first is full
        ),
    ),
    "lambda": ("lambda", (Structure(2, 9, 14), Structure(1, 11, 11), Structure(1, 12, 12))),
    "modules": (  # what an ordinary module is called with: as many keys as queries, no mask, no cache
        "discriminating",
        (
            *(Structure(1, 64, 64), Structure(1, 128, 128), Structure(1, 129, 129), Structure(5, 16, 16)),
            *(Structure(2, 11, 11, hidden=0), Structure(1, 3, 14, hidden=0)),  # a model's layer, and its next tokens
        ),
    ),
    "tiles": (
        "tiles",
        (
            *(Structure(1, 65, 65), Structure(1, 129, 203)),  # a prompt, and the rest of one
            *(Structure(1, 1, 257), Structure(2, 1, 128), Structure(2, 3, 63)),  # decode
            Structure(1, 4, 131, bias=True),
            Structure(1, 4, 127, hole=31),
            Structure(3, 2, 65, padding="right"),  # 63, 64 and 65 keys
            Structure(1, 5, 131, window=66),  # the first key seen is 61 to 65: before it a tile with few keys or none
            Structure(1, 5, 257, window=64),  # 189 to 193: two tiles and more with none
            Structure(packed=((1, 64), (3, 63), (34, 65))),
            Structure(pages=((1, 65), (1, 63), (1, 129)), page=16),
            *(Structure(4, 1, 257), Structure(1, 2, 256), Structure(1, 3, 513)),
            Structure(1, 5, 70, hole=1100),  # positions past tables of 288, 512 and 1,024
            Structure(1, 1, 769),
        ),
    ),
}
"""For each profile, the argument `values` of `draw` and the structures."""

DIFFERENTIAL_PROFILES = ("cancellation", "lambda")
"""Profiles about the difference of two maps; for plain attention they equal natural and discriminating."""


@dataclass(frozen=True, eq=False)
class Case:
    """Inputs of a kernel in their storage dtype, and a gradient of its output.

    `name` has the profile, the index in it, the sizes (`Structure.sizes`), dtype and seed. `source` is the expression
    that reproduces the case, given its spec as `spec`.
    """

    name: str
    profile: str
    seed: int
    dtype: str
    spec: Spec
    inputs: Inputs
    source: str = ""

    def __str__(self) -> str:
        return self.name

    def __repr__(self) -> str:
        return f"Case({self.name!r}, {array_summary(self.inputs)})"

    @property
    def dout(self) -> Numpy:
        """A gradient of the output, in the storage dtype; 0 in rows of padding that are not judged."""
        if is_layer(self.inputs):
            shape: tuple[int, ...] = self.inputs["x"].shape
        else:
            shape = out_shape(self.spec, self.inputs)
        dout = np.random.default_rng([self.seed, 977]).normal(size=shape)
        return round_to_storage(zero_padded(padded_queries(self.spec, self.inputs), dout), self.dtype)

    @cached_property
    def blind_to(self) -> tuple[Mistake, ...]:
        """The deviations that these inputs cannot reveal in a kernel with the usual recipe of their dtype."""
        return blind_spots(self.spec, self.inputs, self.dtype)


def cases(
    profile: str, seed: int = 0, *, spec: Spec | str, dtype: str = "float32", batch: int | None = None,
    queries: int | None = None, keys: int | None = None,
) -> list[Case]:  # fmt: skip
    """Return the cases of a profile for your spec or a preset.

    A case's name has its sizes: `tiles-5-1x4x131-float32-0` is the sixth of tiles, batch 1, 4 queries and 131 keys.

    Args:
        profile: natural, normally distributed inputs; discriminating, where mistakes differ most; cancellation, λ near
            1 and similar maps; tiny_values, where ε matters; extreme, large scores, ties and sinks; degenerate, lengths
            of 0 and 1, rows that attend to nothing; layout, packed, padded and paged; serving, decoding and chunked
            prompts with pages; tiles, numbers of keys at and next to multiples of 64, up to 769, with masks, bias,
            positions and windows that end there; lambda, λ below 0, near 0 and above 3; modules, as many keys as
            queries, up to 129. Where tiles needs a window, it is the spec's, or a mask if the spec has none.
        seed: seed of the numbers.
        spec: your spec; or a preset's name, which gets small dimensions with grouped queries, in layer 2
            (`case.spec`).
        dtype: storage type of the inputs: "float32", "bfloat16" or "float16".
        batch, queries, keys: sizes of one dense case that replaces those of the profile; if only one of queries and
            keys is given, the other is equal to it.

    Raises:
        ValueError: the profile or the dtype is unknown.
    """
    check_profile(profile)
    values, structures = PROFILES[profile]
    if (batch, queries, keys) != (None, None, None):
        T, S = (n if n is not None else other for n, other in ((queries, keys), (keys, queries)))
        structures = (Structure(1 if batch is None else batch, 16 if T is None else T, 16 if S is None else S),)
    own = {"batch": batch, "queries": queries, "keys": keys}
    options = "".join(f", {axis}={n}" for axis, n in own.items() if n is not None)
    spec, made = resolve_spec(spec), []
    for n, listed in enumerate(structures):
        structure = _apply_window(spec, listed)
        inputs = draw(spec, structure, values, 1000 * seed + n, dtype)
        name = f"{profile}-{n}-{structure.sizes}-{dtype}-{seed}"
        source = f'oracle.cases("{profile}", seed={seed}, spec=spec, dtype="{dtype}"{options})[{n}]'
        made.append(Case(name, profile, 1000 * seed + n, dtype, spec, inputs, source))
    return made


def check_profile(name: str) -> str:
    """Return the name; raise ValueError if no profile has it."""
    if name not in PROFILES:
        hint = did_you_mean(name, PROFILES, otherwise=":")
        raise ValueError(f"no profile is called {name!r}{hint} there are {', '.join(PROFILES)}")
    return name


def _apply_window(spec: Spec, structure: Structure) -> Structure:
    """Replace the window mask of a structure by the window of the spec; the first visible key stays the same."""
    if structure.window is None or spec.window is None or spec.window > LONGEST_WINDOW:
        return structure
    return replace(structure, keys=structure.keys - structure.window + spec.window, window=None)
