"""Tiles of queries give what the whole gives, whatever hides keys, and no tile sees later keys than its last query."""

from __future__ import annotations

import numpy as np
import pytest

from refdiff.backends import ops_for
from refdiff.oracle import Spec, truth
from refdiff.oracle.strategies import Structure, draw
from refdiff.oracle.truth import query_tiles
from refdiff.oracle.truth.query_tiles import tiled

STRUCTURES = {
    "square": Structure(batch=2, queries=19, keys=19),
    "decode": Structure(batch=2, queries=7, keys=23, padding="left"),
    "window": Structure(batch=1, queries=13, keys=13, bias=True, window=5),
    "packed": Structure(packed=((7, 7), (11, 13))),
}


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("preset", ["hf_diffllama", "timm", "diff_v2"])
def test_tiles_give_what_the_whole_gives(preset: str, structure: str, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = Spec.preset(preset, query_heads=8, key_heads=8 if preset == "timm" else 4, head_dim=8, layer=3)
    inputs = draw(spec, STRUCTURES[structure], "natural", 1, "float32")
    want = ("out", "lse1", "lse2")
    whole = truth(spec, inputs, want=want, ops=ops_for())
    monkeypatch.setattr(query_tiles, "SCORES", 300)
    found = truth(spec, inputs, want=want)
    for name in want:
        np.testing.assert_allclose(getattr(found, name), getattr(whole, name), rtol=1e-12, atol=1e-13)


def test_a_causal_tile_has_the_keys_up_to_its_last_query(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(query_tiles, "SCORES", 5 * 11)
    seen = []

    def note(tile: query_tiles.Tile) -> query_tiles.Tile:
        def call(q1: np.ndarray, k1: np.ndarray, *rest: object, rows: slice, **options: object) -> np.ndarray:
            seen.append((rows.start, rows.stop, q1.shape[2], k1.shape[2]))
            return tile(q1, k1, *rest, rows=rows, **options)

        return call

    q, k = np.ones((1, 1, 7, 3)), np.ones((1, 1, 11, 3))
    ops = tiled(ops_for(), note)
    ops.diff_attention(q, k, q, k, k, np.asarray(0.5))
    assert seen == [(0, 5, 5, 9), (5, 7, 2, 11)]


def test_more_causal_queries_than_keys_are_refused_as_by_the_layer() -> None:
    q, k = np.ones((1, 1, 7, 3)), np.ones((1, 1, 5, 3))
    ops = tiled(ops_for())
    with pytest.raises(ValueError, match="7"):
        ops.diff_attention(q, k, q, k, k, np.asarray(0.5), ops=ops)
