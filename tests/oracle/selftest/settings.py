"""What a seed of the selftest is made of: a problem on which all deviations are tried, and others for what it lacks."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from refdiff.oracle import Mistake, Spec, deviations
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
    deviations: tuple[Mistake, ...]
    main: bool = False


def settings(seed: int) -> tuple[Setting, ...]:
    """Return the problems of a seed: one of v1 in either variant, long enough for local mistakes, then the others."""
    return _settings(seed % 2, seed // 2 % 2)


@lru_cache
def _settings(variant: int, structure: int) -> tuple[Setting, ...]:
    return each_deviation_once(
        (small_spec(V1[variant]), STRUCTURES[structure], "dense"),
        (small_spec(V1[1 - variant]), Structure(1, 24, 24), "dense"),
        (small_spec("hf_diffllama").replace(window=11, softcap=20.0), Structure(1, 21, 30), "dense"),
        (small_spec("gda"), Structure(1, 24, 24), "dense"),
        (small_spec("diff_v2"), Structure(1, 21, 27), "dense"),
        (small_spec("hf_diffllama"), Structure(packed=((6, 9), (9, 9), (12, 9))), "packed"),
        (small_spec("ms_v1"), Structure(pages=((7, 17), (1, 6), (12, 12))), "paged"),
    )


def each_deviation_once(*problems: tuple[Spec, Structure, str]) -> tuple[Setting, ...]:
    """Return settings: the first, main one has all its deviations, each other those that none before it has."""
    tried: set[str] = set()
    found: list[Setting] = []
    for spec, structure, kind in problems:
        left = tuple(d for d in deviations(spec, kind) if not tried & {d.name, *d.aliases})
        tried |= {name for d in left for name in (d.name, *d.aliases)}
        found.append(Setting(spec, structure, kind, left, main=not found))
    return tuple(found)
