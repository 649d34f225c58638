"""What a seed of the selftest is made of: a problem on which all deviations are tried, and others for what it lacks."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from refdiff.oracle import Mistake, Spec, deviations
from refdiff.oracle.cases.fixed import small_spec
from refdiff.oracle.cases.structure import Structure

DENSE = (Structure(1, 40, 44), Structure(1, 36, 50))
"""Both with earlier keys, without which the triangle, the positions and the cache cannot be wrong."""
SHORT = Structure(1, 24, 24)
PACKED = Structure(packed=((6, 9), (9, 9), (12, 9)))
PAGED = Structure(pages=((7, 17), (1, 6), (12, 12)))
V1 = (small_spec("hf_diffllama"), small_spec("ms_v1"))
PLAIN = (
    Spec.preset("attention", head_dim=16, query_heads=12, key_heads=3, window=11, softcap=20.0),
    Spec.preset("attention", head_dim=16, query_heads=6, key_heads=2, v_head_dim=24, rope="halves", sinks=True),
    Spec.preset("attention", head_dim=16, query_heads=6, key_heads=1, rope="interleaved", v_head_dim=8, scale=0.2),
)


@dataclass(frozen=True)
class Setting:
    """A spec, lengths, which sort of inputs they are, the deviations to try, and whether it is the seed's main one."""

    spec: Spec
    structure: Structure
    kind: str
    deviations: tuple[Mistake, ...]
    main: bool = False


def settings(seed: int, *, plain: bool = False) -> tuple[Setting, ...]:
    """Return the problems of a seed: the main one, long enough for local mistakes, then others for what it lacks."""
    specs = PLAIN if plain else V1
    number = seed % len(specs)
    main = (specs[number], DENSE[seed // len(specs) % 2], "dense")
    if plain:
        return each_deviation_once(main, (specs[number], PACKED, "packed"), (specs[number], PAGED, "paged"))
    return each_deviation_once(
        main,
        (V1[1 - number], SHORT, "dense"),
        (V1[0].replace(window=11, softcap=20.0), Structure(1, 21, 30), "dense"),
        (small_spec("gda"), SHORT, "dense"),
        (small_spec("diff_v2"), Structure(1, 21, 27), "dense"),
        (V1[0], PACKED, "packed"),
        (V1[1], PAGED, "paged"),
    )


@lru_cache
def each_deviation_once(*problems: tuple[Spec, Structure, str]) -> tuple[Setting, ...]:
    """Return settings: the first, main one has all its deviations, each other those that none before it has."""
    tried: set[str] = set()
    found: list[Setting] = []
    for spec, structure, kind in problems:
        left = tuple(d for d in deviations(spec, kind) if not tried & {d.name, *d.aliases})
        tried |= {name for d in left for name in (d.name, *d.aliases)}
        found.append(Setting(spec, structure, kind, left, main=not found))
    return tuple(found)
