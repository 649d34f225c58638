"""What a seed of the selftest is made of: a problem on which all deviations are tried, and others for what it lacks."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from refdiff.oracle import Deviation, Spec, deviations
from refdiff.oracle.cases.fixed import small_spec
from refdiff.oracle.cases.structure import Structure

V1 = ("hf_diffllama", "ms_v1")
STRUCTURES = (Structure(1, 40, 44), Structure(1, 36, 50))
"""Both with earlier keys, without which the triangle, the positions and the cache cannot be wrong."""


@dataclass(frozen=True)
class Setting:
    """A spec, lengths, which sort of inputs they are, the deviations to try, and whether it is the seed's main one."""

    spec: Spec
    structure: Structure
    kind: str
    deviations: tuple[Deviation, ...]
    main: bool = False


def settings(seed: int) -> tuple[Setting, ...]:
    """Return the problems of a seed: one of v1 in either wiring, long enough for local mistakes, then the others."""
    first, second = (small_spec(V1[(seed + n) % 2]) for n in (0, 1))
    main = Setting(first, STRUCTURES[seed // 2 % 2], "dense", deviations(first), main=True)
    return (main, *_others(first, second))


@lru_cache(maxsize=4)
def _others(first: Spec, second: Spec) -> tuple[Setting, ...]:
    """The axes that the main problem has not: each deviation is tried once in a seed."""
    tried = set(_names(deviations(first)))
    found = []
    for spec, structure, kind in (
        (second, Structure(1, 24, 24), "dense"),
        (small_spec("hf_diffllama").replace(window=11, softcap=20.0), Structure(1, 21, 30), "dense"),
        (small_spec("gda"), Structure(1, 24, 24), "dense"),
        (small_spec("diff_v2"), Structure(1, 21, 27), "dense"),
        (small_spec("hf_diffllama"), Structure(packed=((6, 9), (9, 9), (12, 9))), "packed"),
        (small_spec("ms_v1"), Structure(pages=((7, 17), (1, 6), (12, 12))), "paged"),
    ):
        left = tuple(d for d in deviations(spec, kind) if not tried & set(_names((d,))))
        tried |= set(_names(left))
        found.append(Setting(spec, structure, kind, left))
    return tuple(found)


def _names(found: tuple[Deviation, ...]) -> list[str]:
    return [name for d in found for name in (d.name, *d.aliases)]
