"""The decoder of the backends against the readable one, and what a replaced layer function does to both."""

from __future__ import annotations

import threading
from collections import Counter
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from refdiff import layers
from refdiff.backends import Backend, backend_for, decoder, ops_for, overlay
from refdiff.model.weights import flatten
from tests.layers.test_composed import OPERANDS, arrays_in, parts_of
from tests.model.models import VARIANT_NAMES, ids, small_model
from tests.model.test_diffllama import check_rotations
from tests.model.variants import LAYERS
from tests.tolerances import close

SAME = 1e-11
EACH = pytest.mark.parametrize("variant", VARIANT_NAMES)


def recording(seen: list[str]) -> Any:
    """A wrapper without a signature, as anyone writes it."""
    return lambda name, f: lambda *args, **options: (seen.append(name), f(*args, **options))[1]


class Parted(Backend):
    """The layers, with the decoder of the backends over them."""

    def __init__(self) -> None:
        super().__init__()
        self.steps = decoder.Steps(self.ops)

    def fast_diffllama(self, *args: Any) -> Any:
        return decoder.fast_diffllama(*args, steps=self.steps)

    def saving_ops(self) -> Any:
        return decoder.saving_ops(self.steps)


def model_with(backend: Backend, variant: str, **fields: Any) -> Any:
    model = small_model(variant=variant, kernels="reference", **fields)
    model.backend, model.ops = backend, backend.ops
    return model


@EACH
@pytest.mark.parametrize("past", [0, 4])
def test_the_fast_decoder_rotates_by_the_positions_of_the_tokens(variant: str, past: int) -> None:
    """Before the comparison below, so that wrong RoPE in the fast decoder is told as RoPE."""
    backend, calls = Parted(), []

    def wrap(name: str, f: Any) -> Any:
        return lambda *args, **options: (out := f(*args, **options), calls.append((name, args, out)))[0]

    backend.steps = decoder.Steps(overlay(backend.ops, wrap))
    model, tokens = model_with(backend, variant, num_hidden_layers=1), ids(1, 1, past + 5)
    cache = model(tokens[:, :past], use_cache=True).cache if past else None
    calls.clear()
    model(tokens[:, past:], cache=cache)
    check_rotations(calls, variant, model.config.head_dim, past)


@EACH
@settings(max_examples=settings().max_examples // 3)
@given(seed=st.integers(0, 99), past=st.sampled_from([0, 4]), keep=st.integers(0, 9), masked=st.booleans())
def test_the_fast_decoder_equals_the_readable_one(variant: str, seed: int, past: int, keep: int, masked: bool) -> None:
    readable = small_model(variant=variant, seed=seed, kernels="reference")
    whole, fast = model_with(Parted(), variant, seed=seed), small_model(variant=variant, seed=seed)
    tokens, mask = ids(seed, 3, past + 7), (np.arange(past + 7) >= 2 * np.arange(3)[:, None]).astype(int)
    see = {"attention_mask": mask} if masked else {}
    results = []
    for model in (readable, whole, fast):
        before = {"attention_mask": mask[:, :past]} if masked else {}
        cache = model(tokens[:, :past], use_cache=True, **before).cache if past else None
        out = model(tokens[:, past:], cache=cache, use_cache=True, logits_to_keep=keep, **see)
        results.append((out.logits, model(ids(5, 3, 2), cache=out.cache).logits))
    for found in results[1:]:
        for one, expected in zip(found, results[0], strict=True):
            close(one, expected, SAME)


@EACH
def test_gradients_start_from_what_the_forward_pass_saved(variant: str) -> None:
    """Nothing is computed twice but softmax rows, and what is small."""
    backend, calls = Parted(), []
    backend.steps = decoder.Steps(overlay(backend.ops, recording(calls)))
    plain, whole = small_model(variant=variant, kernels="reference"), model_with(backend, variant)
    tokens = ids(0, 2, 5)
    loss, grads = whole.loss_and_grad(tokens, labels=tokens)
    expected, truths = plain.loss_and_grad(tokens, labels=tokens)
    assert loss == expected
    for name, truth in flatten(truths).items():
        np.testing.assert_array_equal(flatten(grads)[name], truth, err_msg=name)
    count = Counter(calls)
    again = "a derivative computes attention again: give it saved=, in saving_ops or in diffllama_vjp.py"
    assert count["diff_attention"] == 3 * ("diff_attention" in called(variant)), again
    of_lambda = 2 * ("diff_lambda_v2" in LAYERS[variant])  # small, and computed again
    assert count["linear"] == 3 * (7 + of_lambda), "four projections of attention, three of the feed-forward network"


@EACH
def test_gradients_of_many_tokens_start_from_saved_log_sum_exps(variant: str) -> None:
    """With 300 tokens NumPy's kernels save them; those of another layer would give other gradients."""
    fast, exact = (small_model(variant=variant, max_position_embeddings=512, kernels=k) for k in ("fast", "reference"))
    tokens = ids(0, 1, 300)
    loss, grads = fast.loss_and_grad(tokens, labels=tokens)
    expected, truths = exact.loss_and_grad(tokens, labels=tokens)
    assert loss == pytest.approx(expected, rel=1e-12)
    for name, truth in flatten(truths).items():
        np.testing.assert_allclose(flatten(grads)[name], truth, rtol=1e-8, atol=1e-12, err_msg=name)


EVERYWHERE = {
    "activation", "attention_weights", "causal_mask", "embedding", "linear", "rms_norm", "rope", "rope_cos_sin",
    "rope_frequencies", "softmax", "swiglu",
}  # fmt: skip


def called(variant: str) -> set[str]:
    """All layers that a model calls, directly or as parts of others."""
    return EVERYWHERE.union(LAYERS[variant], *map(parts_of, LAYERS[variant]))


@EACH
@pytest.mark.parametrize("kernels", ["reference", "fast"])
def test_a_plain_closure_sees_every_layer_forward_and_backward(variant: str, kernels: str) -> None:
    model, tokens, seen = small_model(variant=variant, kernels=kernels), ids(8, 2, 7), []
    before, (loss, grads) = model(tokens).logits, model.loss_and_grad(tokens, labels=tokens)
    model.ops = overlay(model.ops, recording(seen))
    logits = model(tokens).logits
    assert set(seen) == called(variant)
    seen.clear()
    again, grads_again = model.loss_and_grad(tokens, labels=tokens)
    derivatives = {f"{name}_vjp" for name in called(variant) if hasattr(layers, f"{name}_vjp")}
    assert derivatives | {"cross_entropy", "cross_entropy_vjp"} <= set(seen)
    if kernels == "reference":
        np.testing.assert_array_equal(logits, before)
        assert loss == again
        for name, gradient in flatten(grads).items():
            np.testing.assert_array_equal(flatten(grads_again)[name], gradient)
    else:
        close(logits, before, SAME)


@EACH
def test_with_wrapped_layers_a_large_batch_is_not_split_over_threads(variant: str) -> None:
    """A wrapper sees each layer once, and one call at a time."""
    tokens = ids(8, 33, 64)
    model = small_model(variant=variant)
    model = type(model)(model.config, model.params, dtype="float64", threads=2)
    assert len(model.backend.split_batch(*tokens.shape)) == 2
    seen: list[tuple[str, int]] = []
    model.ops = overlay(
        model.ops, lambda name, f: lambda *a, **k: (seen.append((name, threading.get_ident())), f(*a, **k))[1]
    )
    model.loss_and_grad(tokens, labels=tokens)
    count = Counter(name for name, _ in seen)
    attention = next(name for name in LAYERS[variant] if "heads" in name)
    for name in ("swiglu", attention):
        assert (count[name], count[f"{name}_vjp"]) == (3, 3)
    assert {thread for _, thread in seen} == {threading.get_ident()}


@pytest.mark.parametrize("name", sorted(layers.COMPOSED))
def test_a_part_that_was_replaced_is_never_bypassed(name: str) -> None:
    """For every layer with parts, and every part: the replacement runs, and what is not replaced stays fast."""
    ops = backend_for(np).ops
    for part in parts_of(name):
        seen: list[str] = []
        record = recording(seen)
        replaced = overlay(ops, lambda one, f, part=part, record=record: record(one, f) if one == part else f)
        result = getattr(replaced, name)(*OPERANDS[name], ops=replaced)
        assert seen, f"{part} of {name}"
        for one, other in zip(arrays_in(result), arrays_in(getattr(layers, name)(*OPERANDS[name])), strict=True):
            close(one, other, SAME)


def test_a_kernel_serves_a_composed_layer_while_its_parts_are_the_backends_own() -> None:
    called: list[str] = []
    ops = ops_for(SimpleNamespace(swiglu=lambda *args, **options: (called.append("swiglu"), NotImplemented)[1]))
    ops.swiglu(*OPERANDS["swiglu"])
    ops.swiglu(*OPERANDS["swiglu"], ops=ops)
    other = overlay(ops, lambda name, f: (lambda *a, **k: f(*a, **k)) if name == "rms_norm" else f)
    ops.swiglu(*OPERANDS["swiglu"], ops=other)
    assert called == ["swiglu"] * 3
    other = overlay(ops, lambda name, f: (lambda *a, **k: f(*a, **k)) if name == "activation" else f)
    ops.swiglu(*OPERANDS["swiglu"], ops=other)
    assert len(called) == 3
