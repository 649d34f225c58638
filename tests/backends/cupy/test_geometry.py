"""Tiles, splits and rows: what is chosen fits the device, covers the work, and is what the sources lay out."""

from hypothesis import given
from hypothesis import strategies as st

from refdiff.backends.cupy.geometry import (
    MAX_QUERY,
    MAX_VALUE,
    SUMS_PER_THREAD,
    attention_tiles,
    key_splits,
    mma_columns,
    mma_tiles,
    shared_bytes,
)
from refdiff.backends.cupy.tuning import Tuning

KIB = 1024
SM75, SM86, SM80, SM90 = 64 * KIB, 99 * KIB, 163 * KIB, 227 * KIB
"""What a block may have at most on each of these."""

widths = st.integers(1, MAX_QUERY)


def test_shared_bytes_by_hand() -> None:
    queries, keys, values, weights = 2 * 64 * 65, 2 * 32 * 65, 32 * 128, 2 * 64 * 33
    assert shared_bytes(64, 128, 2, 64, 32) == 4 * (queries + keys + values + weights)
    values, gradients, difference = 32 * 129, 64 * 129, 64 * 33
    assert shared_bytes(64, 128, 2, 64, 32, True) == 4 * (queries + keys + values + gradients + weights + difference)


@given(d=widths, e=st.integers(1, MAX_VALUE), maps=st.sampled_from([1, 2]), rows=st.integers(1, 10**6),
       limit=st.sampled_from([SM75, SM86, SM80, SM90]), backward=st.booleans())  # fmt: skip
def test_tiles_fit_the_device(d: int, e: int, maps: int, rows: int, limit: int, backward: bool) -> None:
    tiles = attention_tiles(d, e, maps, rows, limit, backward=backward)
    if tiles is None:
        assert shared_bytes(d, e, maps, 16, 16, backward) > limit
        return
    assert tiles.shared == shared_bytes(d, e, maps, tiles.rows, tiles.keys, backward) <= limit
    assert tiles.rows % 16 == tiles.keys % 16 == 0
    assert tiles.rows == 16 or tiles.rows < rows + 16  # no more than the last 16 rows stand empty
    assert tiles.rows == 16 or maps * -(-e // 16) * (tiles.rows // 16) <= SUMS_PER_THREAD


@given(blocks=st.integers(1, 10**5), keys=st.integers(1, 10**6), tile=st.sampled_from([16, 32]),
       multiprocessors=st.integers(1, 200))  # fmt: skip
def test_splits_cover_the_keys_without_an_empty_one(blocks: int, keys: int, tile: int, multiprocessors: int) -> None:
    splits, each = key_splits(Tuning(), blocks, keys, tile, multiprocessors)
    assert splits >= 1
    assert splits * each >= keys > (splits - 1) * each
    assert splits == 1 or each % tile == 0


@given(d=widths, e=st.integers(1, MAX_VALUE), maps=st.integers(1, 2), rows=st.integers(1, 10**5),
       limit=st.sampled_from([SM75, SM86, SM80, SM90]))  # fmt: skip
def test_tiles_of_tensor_cores_fit_and_are_no_taller_than_the_rows(
    d: int, e: int, maps: int, rows: int, limit: int
) -> None:
    tiles = mma_tiles(d, e, maps, rows, limit)
    if tiles is None:
        assert rows < 16 or limit == SM75
        return
    assert tiles.shared <= limit
    assert tiles.rows in (16, 32, 64)
    assert tiles.rows < rows + 16
    assert mma_columns(e) % 8 == 0
    width = -(-d // 16) * 16 + 8
    assert tiles.shared == 2 * (maps * (tiles.rows + 32) * width + mma_columns(e) * 40)
