"""Maps out of a model: which heads are a pair, means, λ, errors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import refdiff
from refdiff.model.variants import VARIANTS
from refdiff.viz import AttentionMaps, attention_maps, maps_of
from refdiff.viz.maps import check_size
from tests.layers.places import STRICT
from tests.model.models import VARIANT_NAMES, small_config

from .conftest import lambda_by_query

MapsIn = Callable[[str], AttentionMaps]


@pytest.mark.parametrize("variant", [variant for variant in VARIANT_NAMES if VARIANTS[variant].pairing])
def test_the_three_maps_belong_together(maps_in: MapsIn, outputs: Callable[[str], Any], variant: str) -> None:
    maps = maps_in(variant)
    assert maps.second is not None
    P = small_config(variant=variant).num_query_heads // 2
    assert maps.first.shape == maps.second.shape == (3, P, 7, 7)
    np.testing.assert_allclose(maps.first - lambda_by_query(maps) * maps.second, maps.difference, atol=1e-14)
    out = outputs(variant)
    halves = VARIANTS[variant].pairing == "halves"
    first = range(P) if halves else range(0, 2 * P, 2)
    second = range(P, 2 * P) if halves else range(1, 2 * P, 2)
    for layer, weights in enumerate(out.attentions):
        np.testing.assert_array_equal(maps.first[layer], weights[1, first])
        np.testing.assert_array_equal(maps.second[layer], weights[1, second])
        np.testing.assert_array_equal(maps.difference[layer], out.differential_attentions[layer][1])


@pytest.mark.parametrize("variant", VARIANT_NAMES)
def test_arrays_of_a_device_are_brought_to_the_host(maps_in: MapsIn, variant: str) -> None:
    maps = maps_in(variant)
    names = ("first", "second", "difference", "lambdas", "starts")
    there = AttentionMaps(maps.tokens, *(STRICT.put(getattr(maps, name)) for name in names))
    for name in names:
        assert type(getattr(there, name)) is type(getattr(maps, name))
        np.testing.assert_array_equal(getattr(there, name), getattr(maps, name))


def test_where_most_cancels_is_where_lambda_is_near_1_and_the_maps_are_alike() -> None:
    rng = np.random.default_rng(2)
    weights = np.tril(rng.random((2, 3, 4, 5, 5)))
    first, second = weights / weights.sum(-1, keepdims=True)
    second[1, 2] = first[1, 2]
    second[0, 1] = first[0, 1]
    lambdas = np.array([-1.0, 0.8, 1.9])
    maps = AttentionMaps(tuple("abcde"), first, second, first - lambdas[:, None, None, None] * second, lambdas, None)
    assert maps.most_cancelling() == (1, 2)
    by_query = np.stack([np.full((4, 5), value) for value in lambdas])
    assert replace(maps, lambdas=by_query).most_cancelling() == (1, 2)


def test_a_llama_has_one_map_a_head(maps_in: MapsIn, outputs: Callable[[str], Any]) -> None:
    maps = maps_in("plain")
    assert maps.names == ("difference",)
    assert maps.most_cancelling() == (None, None)
    assert (maps.second, maps.lambdas, maps.starts, maps.lambda_()) == (None, None, None, None)
    np.testing.assert_array_equal(maps.map("difference", 2, 5), outputs("plain").attentions[2][1, 5])
    assert maps.title(2, 5) == "layer 2, head 5"


def test_means(maps_in: MapsIn) -> None:
    maps = maps_in("hf")
    np.testing.assert_array_equal(maps.map("first", 1, 3), maps.first[1, 3])
    np.testing.assert_allclose(maps.map("second", 2), maps.second[2].mean(0), rtol=1e-14)  # type: ignore[index]
    np.testing.assert_allclose(maps.map("difference", pair=0), maps.difference[:, 0].mean(0), rtol=1e-12)
    np.testing.assert_allclose(maps.map("difference"), maps.difference.reshape(12, 7, 7).mean(0), rtol=1e-12)
    assert maps.lambdas is not None
    assert maps.lambda_(1, 2) == maps.lambdas[1]
    np.testing.assert_allclose(maps.lambda_(), maps.lambdas.mean(), rtol=1e-14)
    v2 = maps_in("v2")
    assert v2.lambdas is not None
    np.testing.assert_array_equal(v2.lambda_(1, 2), v2.lambdas[1, 2])
    np.testing.assert_allclose(v2.lambda_(1), v2.lambdas[1].mean(0), rtol=1e-14)


def test_from_a_text(tiny_checkpoint: Path) -> None:
    model = refdiff.DiffLlamaForCausalLM.from_pretrained(tiny_checkpoint)
    tokenizer = refdiff.Tokenizer.from_pretrained(tiny_checkpoint)
    maps = attention_maps(model, "a b")
    assert maps.tokens == ("<s>", "a", "·", "b")
    assert maps.queries == maps.tokens
    out = model([tokenizer.encode("a b")], output_attentions=True)
    np.testing.assert_array_equal(maps.first[1], out.attentions[1][0, :2])
    np.testing.assert_array_equal(attention_maps(model, tokenizer.encode("a b"), tokenizer).first, maps.first)
    with pytest.raises(ValueError, match="the text has no tokens"):
        attention_maps(model, [])
    fresh = refdiff.DiffLlamaForCausalLM.from_config(model.config)
    with pytest.raises(ValueError, match="tokenizer: got None, expected one"):
        attention_maps(fresh, "a")


def test_maps_that_exceed_the_memory_limit_are_refused() -> None:
    model = refdiff.DiffLlamaForCausalLM.from_config(small_config())  # 3 layers, 8 heads, 8 bytes
    check_size(model, 3227)  # 3 · 8 · 2 · 4 · 3227² = 2.0 e9
    with pytest.raises(ValueError, match=r"3228 tokens .* 2\.0 GB: give a text of at most 3227 tokens"):
        check_size(model, 3228)


def test_errors(maps: AttentionMaps, outputs: Callable[[str], Any]) -> None:
    with pytest.raises(IndexError, match="layer: got 3, expected 0 to 2, or None for the mean"):
        maps.map("first", 3)
    with pytest.raises(IndexError, match="pair: got -1, expected 0 to 3"):
        maps.lambda_(0, -1)
    with pytest.raises(ValueError, match="name: got 'third', expected first or second or difference"):
        maps.map("third")
    with pytest.raises(ValueError, match="call the model with output_attentions=True"):
        maps_of(refdiff.model.outputs.ModelOutput(), ["a"])
    with pytest.raises(ValueError, match="6 tokens, expected"):
        maps_of(outputs("hf"), ["t"] * 6)
    with pytest.raises(ValueError, match=r"second: got shape \(3, 4, 7, 6\), expected \(3, 4, 7, 7\)"):
        AttentionMaps(maps.tokens, maps.first, maps.first[..., :6], maps.difference, None, None)
