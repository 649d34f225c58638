"""How a kernel's work is cut into blocks: sizes of tiles, shared memory, numbers of splits; no device needed."""

from __future__ import annotations

from dataclasses import dataclass

from refdiff.backends.cupy.tuning import Tuning

MAX_QUERY, MAX_VALUE = 256, 512
"""The widest queries and values that attention has registers for."""

SUMS_PER_THREAD = 64
"""How many sums of values a thread may keep in its registers, beside what else it needs."""

RESERVED_SHARED = 1024
"""Bytes of shared memory that CUDA keeps for each block; a multiprocessor has so many more than a block may (sm_80)."""


@dataclass(frozen=True)
class Tiles:
    """The rows and keys of a tile, and the bytes of shared memory that a block so needs."""

    rows: int
    keys: int
    shared: int


def attention_tiles(d: int, e: int, maps: int, rows: int, limit: int, *, backward: bool = False) -> Tiles | None:
    """Choose the largest tiles of which two blocks fit into the shared memory of a multiprocessor, else one.

    Args:
        d: the width of a query.
        e: the width of a value.
        maps: 2, or 1 for plain attention.
        rows: how many rows of queries read one key head.
        limit: the bytes of shared memory that a block may have.
        backward: whether it is for the backward pass, which keeps more.

    Returns:
        None where no tile fits, or no thread could hold its sums.
    """
    if not (0 < d <= MAX_QUERY and 0 < e <= MAX_VALUE):
        return None
    columns = -(-e // 16)
    sizes = [
        Tiles(r, k, shared_bytes(d, e, maps, r, k, backward))
        for r in (64, 32, 16)
        for k in (32, 16)
        if r == 16 or (r < rows + 16 and maps * columns * r // 16 <= SUMS_PER_THREAD)
    ]
    twice = (limit + RESERVED_SHARED) // 2 - RESERVED_SHARED
    fitting = [tiles for tiles in sizes if tiles.shared <= twice] or [
        tiles for tiles in sizes[-1:] if tiles.shared <= limit
    ]
    return fitting[0] if fitting else None


def mma_tiles(d: int, e: int, maps: int, rows: int, limit: int) -> Tiles | None:
    """Choose tiles for attention_mma.cu as `attention_tiles` does; None where none fits, or rows are few."""
    if not (0 < d <= MAX_QUERY and 0 < e <= MAX_VALUE) or rows < 16:
        return None
    keys = 32
    for tile in (64, 32, 16):
        bytes_ = 2 * (maps * (tile + keys) * (-(-d // 16) * 16 + 8) + mma_columns(e) * (keys + 8))
        if bytes_ <= limit and (tile == 16 or tile < rows + 16):
            return Tiles(tile, keys, bytes_)
    return None


def worth_tensor_cores(t: Tuning, tiles: Tiles, splits: int) -> bool:
    """Return whether tensor cores, with one block for all keys of a tile, beat `splits` blocks that share them."""
    return splits <= t.splits_per_warp * tiles.rows // 16


def mma_columns(e: int) -> int:
    """How many columns of the values a block of attention_mma.cu takes."""
    return min(-(-e // 8) * 8, 128)


def shared_bytes(d: int, e: int, maps: int, rows: int, keys: int, backward: bool = False) -> int:
    """Count the bytes that the tiles of attention.cu, or of attention_vjp.cu, take."""
    both = maps * (rows + keys) * (d + 1) + maps * rows * (keys + 1)
    own = (rows + keys) * (e + 1) + rows * (keys + 1) if backward else keys * e
    return 4 * (both + own)


def key_splits(t: Tuning, blocks: int, keys: int, tile: int, multiprocessors: int) -> tuple[int, int]:
    """Choose how many blocks share the keys of a row, and how many keys each takes.

    They are split where at least twice as many blocks are wanted as there are, else it is (1, keys).

    Args:
        t: the thresholds.
        blocks: the blocks that there are without splitting.
        keys: how many keys there are.
        tile: the keys of a tile, of which each block takes a multiple.
        multiprocessors: of the device.
    """
    splits = min(t.waves * multiprocessors // blocks, keys // t.min_split_keys)
    if splits < 2:
        return 1, keys
    each = -(-keys // splits)
    each = -(-each // tile) * tile
    return -(-keys // each), each


def row_threads(size: int) -> int:
    """Choose the threads for a row of `size` numbers: a power of two from 32 to 1024, about 4 numbers each."""
    threads = 32
    while threads < 1024 and 4 * threads < size:
        threads *= 2
    return threads


def row_shares(rows: int) -> int:
    """Choose in how many shares `rows` are summed up, eight rows at a time: enough for many blocks, few to add up."""
    return max(1, min(-(-rows // 64), 64))
