"""Padding, masks and the cache against transformers in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from transformers import DynamicCache

import refdiff
from tests.compare import compare_outputs
from tests.parity.conftest import Checkpoint, of
from tests.parity.test_model import everything

pytestmark = pytest.mark.filterwarnings("ignore:the text is longer than")

# rows of the batch: real tokens from, to, of 12
SPANS = {
    "left": [(4, 12), (0, 12), (11, 12)],
    "right": [(0, 7), (0, 12), (0, 1)],
    "both": [(2, 9), (5, 12), (0, 10)],
}


def padded(checkpoint: Checkpoint, side: str) -> tuple[np.ndarray, np.ndarray]:
    """Ids with the padding token outside each row's span, and the 2-D mask."""
    ids, mask = checkpoint.ids(3, 12, side), np.zeros((3, 12), dtype=np.int64)
    for row, (start, end) in enumerate(SPANS[side]):
        mask[row, start:end] = 1
    return np.where(mask == 1, ids, checkpoint.recipe.config["pad_token_id"] or 0), mask


def sees_something(mask: np.ndarray) -> np.ndarray:
    """(B, T): the rows that may see at least one key, for a 2-D mask and the causal triangle."""
    return np.cumsum(mask, axis=1) > 0


@pytest.mark.parametrize("side", SPANS)
def test_padding(checkpoint: Checkpoint, ours: Any, side: str) -> None:
    """Rows that see nothing are zero, as in transformers' default attention; its eager one averages over everything."""
    ids, mask = padded(checkpoint, side)
    got = everything(ours, ids, attention_mask=mask)
    want = everything(checkpoint.fresh_truth(), ids, attention_mask=mask)
    compare_outputs(got, want, sees_something(mask), pooled=checkpoint.pooled)
    want = checkpoint.fresh_sdpa()(ids, attention_mask=mask, output_hidden_states=True)
    compare_outputs(got, want, pooled=checkpoint.pooled)
    for rows in got.attentions:
        assert not np.moveaxis(np.asarray(rows), 2, 1)[~sees_something(mask)].any()


@pytest.mark.parametrize("dtype", [bool, np.int32, np.float32])
def test_a_mask_with_holes(checkpoint: Checkpoint, ours: Any, dtype: type) -> None:
    mask = (checkpoint.rng("holes").random((3, 12)) < 0.6).astype(dtype)
    ids = checkpoint.ids(3, 12, "holes")
    want = everything(checkpoint.fresh_truth(), ids, attention_mask=mask)
    got = everything(ours, ids, attention_mask=mask)
    compare_outputs(got, want, sees_something(mask), pooled=checkpoint.pooled)


def may_see(checkpoint: Checkpoint, heads: int, *, blind: bool) -> np.ndarray:
    """A random mask (3, heads, 9, 9) that is not causal; `blind`: some rows see nothing."""
    seen = checkpoint.rng(f"4-D {heads} {blind}").random((3, heads, 9, 9)) < 0.5
    if blind:
        seen[:, :, 3] = False
        seen[1, :, 7] = False
    else:
        seen |= np.eye(9, dtype=bool)
    return seen


@pytest.mark.parametrize("per_head", [False, True])
@pytest.mark.parametrize("blind", [False, True])
def test_boolean_4d_mask(checkpoint: Checkpoint, ours: Any, per_head: bool, blind: bool) -> None:
    seen = may_see(checkpoint, checkpoint.recipe.config["num_attention_heads"] if per_head else 1, blind=blind)
    ids = checkpoint.ids(3, 9, "4-D")
    want = checkpoint.fresh_sdpa()(ids, attention_mask=seen, output_hidden_states=True)
    got = everything(ours, ids, attention_mask=seen)
    compare_outputs(got, want, pooled=checkpoint.pooled)
    for rows in got.attentions:
        assert not np.asarray(rows)[~np.broadcast_to(seen, np.shape(rows))].any()


@pytest.mark.parametrize("per_head", [False, True])
@pytest.mark.parametrize("hidden", [-np.inf, np.finfo(np.float32).min, np.finfo(np.float64).min], ids=str)
def test_additive_4d_mask(checkpoint: Checkpoint, ours: Any, per_head: bool, hidden: float) -> None:
    """Zero, a large negative number, and small ones between (as ALiBi has them)."""
    seen = may_see(checkpoint, checkpoint.recipe.config["num_attention_heads"] if per_head else 1, blind=False)
    bias = np.where(seen, checkpoint.rng("bias").normal(size=seen.shape), hidden)
    ids = checkpoint.ids(3, 9, "4-D")
    want = everything(checkpoint.fresh_truth(), ids, attention_mask=bias)
    compare_outputs(everything(ours, ids, attention_mask=bias), want, pooled=checkpoint.pooled)


def chunks(sizes: list[int]) -> list[slice]:
    ends = np.cumsum(sizes)
    return [slice(int(end - size), int(end)) for size, end in zip(sizes, ends, strict=True)]


SIZES = {"decode": [5, 1, 1, 1, 1, 1], "chunked prefill": [4, 3, 2, 1], "one by one": [1] * 10}


@pytest.mark.parametrize("way", SIZES)
@pytest.mark.parametrize("side", ["none", "left", "right"])
def test_cache(checkpoint: Checkpoint, ours: Any, way: str, side: str) -> None:
    """Each call against the same call of transformers, with masks and positions as `generate` gives them."""
    ids, peer = checkpoint.ids(3, 10, "cache"), checkpoint.fresh_truth()
    mask = np.ones((3, 10), dtype=np.int64)
    if side == "left":
        mask[0, :4] = mask[2, :1] = 0
    elif side == "right":
        # as when rows of unequal length are prefilled together and decoding goes on after the padding
        mask[0, 2:5] = mask[2, 4:5] = 0
    positions = np.maximum(np.cumsum(mask, axis=1) - 1, 0)
    theirs, cache = DynamicCache(config=peer.model.config), refdiff.KVCache(ours.config.num_hidden_layers)
    for part in chunks(SIZES[way]):
        options = {} if side == "none" else {"attention_mask": mask[:, : part.stop], "position_ids": positions[:, part]}
        want = everything(peer, ids[:, part], cache=theirs, use_cache=True, **options)
        got = everything(ours, ids[:, part], cache=cache, use_cache=True, **options)
        seen = sees_something(mask)[:, part]
        compare_outputs(got, want, seen, pooled=seen[:, -1] if checkpoint.pooled else None)
        assert len(cache) == theirs.get_seq_length() == part.stop


def test_additive_4d_mask_with_a_cache(checkpoint: Checkpoint, ours: Any) -> None:
    ids, peer = checkpoint.ids(3, 9, "4-D"), checkpoint.fresh_truth()
    seen = may_see(checkpoint, 1, blind=False)
    bias = np.where(seen, 0.0, np.finfo(np.float64).min)
    theirs, cache = DynamicCache(config=peer.model.config), refdiff.KVCache(ours.config.num_hidden_layers)
    for part in chunks([5, 3, 1]):
        options = {"attention_mask": bias[:, :, part, : part.stop]}
        want = everything(peer, ids[:, part], cache=theirs, use_cache=True, **options)
        got = everything(ours, ids[:, part], cache=cache, use_cache=True, **options)
        visible = seen[:, 0, part, : part.stop].any(axis=-1)
        compare_outputs(got, want, visible, pooled=visible[:, -1] if checkpoint.pooled else None)


def test_reordered_and_cropped_cache(checkpoint: Checkpoint, ours: Any) -> None:
    ids, peer = checkpoint.ids(3, 10, "reorder"), checkpoint.fresh_truth()
    theirs = DynamicCache(config=peer.model.config)
    peer(ids[:, :7], cache=theirs, use_cache=True)
    cache = refdiff.KVCache(ours.config.num_hidden_layers)
    ours(ids[:, :7], cache=cache)
    theirs.reorder_cache(torch.tensor([2, 0, 0]))
    cache.reorder(np.array([2, 0, 0]))
    theirs.crop(-2)
    cache.crop(5)
    want = everything(peer, ids[:, 7:], cache=theirs, use_cache=True)
    got = everything(ours, ids[:, 7:], cache=cache, use_cache=True)
    compare_outputs(got, want, pooled=checkpoint.pooled)
    for one in (theirs, cache):
        one.crop(tokens_to_remove=-2)
        one.crop(-1)
        assert one.get_seq_length() == 5
        one.crop(0)
    assert (theirs.get_seq_length(), len(cache)) == (5, 0)  # the guide says so
    with pytest.raises(ValueError, match="positive"):
        theirs.crop(2)


def test_past_the_original_length(checkpoint: Checkpoint, ours: Any) -> None:
    """Longer than every limit the recipes set on RoPE but those above 64."""
    ids = checkpoint.ids(1, 70, "long")
    want = everything(checkpoint.fresh_truth(), ids)
    compare_outputs(everything(ours, ids), want, pooled=checkpoint.pooled)


@of("DiffLlamaForCausalLM")
@pytest.mark.parametrize("kind", ["plain", "padded", "packed", "4-D", "chunks"])
def test_more_tokens_than_a_block(checkpoint: Checkpoint, ours: Any, kind: str) -> None:
    """The fast kernel goes through queries in blocks of 128: prompts of 300 cross two of their edges."""
    T, heads = 300, checkpoint.recipe.config["num_attention_heads"]
    ids, peer, rng = checkpoint.ids(2, T, "blocks"), checkpoint.fresh_truth(), checkpoint.rng("blocks")
    if kind == "chunks":
        theirs, cache = DynamicCache(config=peer.model.config), refdiff.KVCache(ours.config.num_hidden_layers)
        mask = (rng.random((2, T)) < 0.9).astype(np.int64)
        mask[:, 0] = 1
        for part in chunks([140, 159, 1]):
            options = {"attention_mask": mask[:, : part.stop], "use_cache": True}
            got = ours(ids[:, part], cache=cache, **options)
            compare_outputs(got, peer(ids[:, part], cache=theirs, **options))
        return
    options = {"plain": {}}
    mask = np.arange(T) >= np.array([[137], [0]])
    options["padded"] = {"attention_mask": mask}
    options["packed"] = {"position_ids": np.concatenate([np.arange(130), np.arange(170)])[None].repeat(2, 0)}
    bias = np.where(rng.random((2, heads, T, T)) < 0.7, rng.normal(size=(2, heads, T, T)), -np.inf)
    options["4-D"] = {"attention_mask": bias}
    seen = mask if kind == "padded" else None
    want = peer(ids, use_cache=False, **options[kind])
    compare_outputs(ours(ids, use_cache=False, **options[kind]), want, seen)
