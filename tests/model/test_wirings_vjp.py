"""What the rows of derivatives are made of; their numbers are held in test_diffllama_vjp.py."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from refdiff.backends import ops_for, overlay
from refdiff.model.weights import flatten
from refdiff.model.wirings import WIRINGS
from refdiff.model.wirings_vjp import WIRINGS_VJP, Kept
from tests.model.models import ids, small_model


def test_every_wiring_has_its_derivatives() -> None:
    assert list(WIRINGS_VJP) == list(WIRINGS)


def test_kept_results_come_again_in_order_without_a_second_computation() -> None:
    calls = []

    def layer(x: int, *, twice: bool = False) -> int:
        calls.append(x)
        return 2 * x if twice else x

    kept = Kept(layer)
    assert [kept(3), kept(5, twice=True)] == [3, 10]
    assert [kept.again(0), kept.again("anything", at=1)] == [3, 10]
    assert calls == [3, 5]


@pytest.mark.parametrize("wiring", ["hf", "paper"])
def test_the_difference_of_a_layer_is_computed_once(wiring: str) -> None:
    model, calls = small_model(wiring=wiring), []

    def counted(name: str, function: Any) -> Any:
        if name != "diff_attention":
            return function
        return lambda *args, **options: calls.append(name) or function(*args, **options)

    model.ops = overlay(model.ops, counted)
    model.loss_and_grad(ids(0, 2, 5), labels=ids(0, 2, 5))
    assert len(calls) == model.config.num_hidden_layers


@pytest.mark.parametrize("wiring", ["hf", "paper", "v2"])
def test_the_way_back_begins_from_what_was_saved(wiring: str) -> None:
    """With so many tokens the kernels go by blocks; each layer's log-sum-exps come back to it."""
    model, calls = small_model(wiring=wiring, max_position_embeddings=512), []
    exact = small_model(wiring=wiring, max_position_embeddings=512, kernels="reference")
    kernels = model.kernels
    saving, back = kernels.diff_attention_with_lse, kernels.diff_attention_vjp_from_lse

    def saved(*args: Any, **options: Any) -> Any:
        result = saving(*args, **options)
        calls.append(result[1])
        return result

    def again(*args: Any, lse: Any, **options: Any) -> Any:
        assert calls.pop() is lse
        return back(*args, lse=lse, **options)

    model.ops.diff_attention_with_lse, model.ops.diff_attention_vjp_from_lse = saved, again
    tokens = ids(0, 1, 300)
    loss, grads = model.loss_and_grad(tokens, labels=tokens)
    expected, truths = exact.loss_and_grad(tokens, labels=tokens)
    assert not calls
    assert loss == pytest.approx(expected, rel=1e-12)
    ours, theirs = flatten(grads), flatten(truths)
    assert ours.keys() == theirs.keys()
    for name, truth in theirs.items():
        np.testing.assert_allclose(ours[name], truth, rtol=1e-8, atol=1e-12, err_msg=name)


@pytest.mark.parametrize("name", WIRINGS)
def test_values_come_back_to_their_places(name: str) -> None:
    """To split into heads and back is a permutation: its transpose is its inverse."""
    v = np.random.default_rng(0).normal(size=(2, 3, 24))
    ops, d = ops_for(), 6
    k = np.empty((2, 4, 3, 6))
    np.testing.assert_array_equal(WIRINGS_VJP[name].values(ops, WIRINGS[name].values(ops, v, d), k), v)
