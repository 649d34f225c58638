"""Gradients of whole models: every head, variant and mask against central differences, and on a second device."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

import refdiff
from refdiff import arrays
from refdiff.backends import overlay
from refdiff.model import diffllama_vjp, weights
from tests.backends.tuned import tune
from tests.layers.places import Place
from tests.model.models import CLASSES, VARIANT_NAMES, ids, small_config, small_model

ROUGH = 3e-8  # what four evaluations in float64 can tell of a slope
HEADS = CLASSES[1:]
IDS = ids(0, 2, 7)


def targets(kind: type, count: int = 7) -> dict[str, Any]:
    if kind is refdiff.DiffLlamaForQuestionAnswering:
        return {"start_positions": np.array([1, 2]), "end_positions": np.array([3, count + 2])}
    if kind is refdiff.DiffLlamaForSequenceClassification:
        return {"labels": np.array([1, 2])}
    labels = ids(1, 2, count) % 3
    labels[0, 2] = -100
    return {"labels": labels}


def flat(nested: Any) -> dict[str, np.ndarray]:
    return {name: arrays.to_numpy(a) for name, a in weights.flatten(nested).items()}


def error_of_slope(model: Any, options: dict[str, Any], wrong: dict[str, float] | None = None) -> float:
    """Compare the slope along a random direction in all parameters at once with differences, relative to its parts."""
    loss, grads = model.loss_and_grad(**options)
    assert loss == model(use_cache=False, **options).loss  # not a bit between the two ways forward
    parameters, gradient = flat(model.params), flat(grads)
    assert list(parameters) == list(gradient)
    assert all(gradient[name].shape == a.shape for name, a in parameters.items())
    g = np.random.default_rng(5)
    way = {name: g.normal(size=a.shape) * np.abs(a).max() for name, a in parameters.items()}
    unmoved = [name for name in way if not np.any(way[name])]
    assert not unmoved, f"all 0, so nothing tests their gradients: {unmoved}; draw them in small_model"

    def at(by: float) -> float:
        moved = weights.nest({name: a + by * way[name] for name, a in parameters.items()})
        return float(type(model)(model.config, moved, dtype="float64")(use_cache=False, **options).loss)

    h = 1e-5
    by_difference = (8 * (at(h) - at(-h)) - (at(2 * h) - at(-2 * h))) / (12 * h)
    parts = [np.sum(gradient[name] * way[name]) * (1 + (wrong or {}).get(name, 0.0)) for name in parameters]
    return float(abs(by_difference - sum(parts)) / sum(abs(part) for part in parts))


@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize("variant", VARIANT_NAMES)
def test_every_head_and_variant(kind: type, variant: str) -> None:
    model = small_model(kind, variant=variant, num_labels=3, attention_bias=True)
    assert error_of_slope(model, {"input_ids": IDS, **targets(kind)}) < ROUGH


def four_dimensional(heads: int) -> np.ndarray:
    visible = np.tril(np.random.default_rng(3).random((2, heads, 7, 7)) < 0.7)
    return visible | np.eye(7, dtype=bool)


SEEN = {
    "padding at the left": {"attention_mask": np.array([[0, 0, 1, 1, 1, 1, 1], [1] * 7])},
    "padding at the right": {"attention_mask": np.array([[1, 1, 1, 1, 1, 0, 0], [1] * 7])},
    "boolean rows of one head": {"attention_mask": four_dimensional(1)},
    "boolean rows of every head": {"attention_mask": four_dimensional(8)},
    "additive": {"attention_mask": np.where(four_dimensional(8), np.random.default_rng(4).normal(size=7), -np.inf)},
    "packed": {"position_ids": np.array([[0, 1, 2, 0, 1, 2, 3], [0, 0, 1, 2, 3, 4, 5]])},
    "later positions": {"position_ids": np.arange(3, 10)[None]},
}


def for_heads(heads: int, options: dict[str, Any]) -> dict[str, Any]:
    """The same with a mask of every head for so many heads as there are."""
    return {n: np.concatenate([a] * (heads // 8), axis=1) if a.shape[1] == 8 else a for n, a in options.items()}


@pytest.mark.parametrize("seen", SEEN)
@pytest.mark.parametrize("variant", VARIANT_NAMES)
def test_masks_and_positions(seen: str, variant: str) -> None:
    model = small_model(variant=variant)
    options = for_heads(model.config.num_query_heads, SEEN[seen])
    assert error_of_slope(model, {"input_ids": IDS, "labels": IDS, **options}) < ROUGH


def rows_of(options: dict[str, Any], times: int) -> dict[str, Any]:
    """The same for so many times as many rows."""
    return {n: a if len(a) == 1 else np.concatenate([a] * times) for n, a in options.items()}


def apart(rows: int, options: dict[str, Any], **other: Any) -> tuple[Any, Any]:
    """A loss and its gradients where about so many rows go through the model at a time."""
    model = small_model(**other)
    tune(model.backend.kernels, training_tokens=rows * IDS.shape[1])
    return model.loss_and_grad(**options)


@pytest.mark.parametrize("seen", [*SEEN, "everything"])
@pytest.mark.parametrize("variant", VARIANT_NAMES)
def test_microbatches_give_the_loss_and_gradients_of_the_whole_batch(seen: str, variant: str) -> None:
    """Of 6 rows: 5 targets of which none counts in the third part, and different numbers in the others."""
    tokens = np.concatenate([IDS, (IDS + 7) % 52 + 1, (IDS + 30) % 52 + 1])
    labels = tokens.copy()
    labels[0, 1:4] = -100
    labels[4:] = -100
    seen_by_heads = for_heads(small_config(variant=variant).num_query_heads, SEEN.get(seen, {}))
    options = {"input_ids": tokens, "labels": labels, **rows_of(seen_by_heads, 3)}
    whole_loss, whole = apart(6, options, variant=variant)
    for rows in (1, 2):
        loss, grads = apart(rows, options, variant=variant)
        np.testing.assert_allclose(loss, whole_loss, rtol=1e-14)
        for name, gradient in flat(whole).items():
            layer = re.sub(r"(layers\.\d+\.).*", r"\1", name)
            largest = max(np.abs(a).max() for other, a in flat(whole).items() if other.startswith(layer))
            # of the layer: a gradient by itself may be the small rest of terms that cancel
            assert np.abs(flat(grads)[name] - gradient).max() <= 1e-12 * largest, name


@pytest.mark.parametrize("rows", [1, 2, 3, 4])
def test_the_number_of_threads_changes_no_bit(rows: int) -> None:
    tokens = ids(4, 7, 7)
    results = []
    for threads in (1, 2, 3):
        model = small_model()
        model = type(model)(model.config, model.params, dtype="float64", threads=threads)
        tune(model.backend.kernels, training_tokens=rows * 7)
        results.append(model.loss_and_grad(tokens, labels=tokens))
    (loss, grads), *others = results
    for other_loss, other in others:
        assert other_loss == loss
        assert all(np.array_equal(a, flat(grads)[name]) for name, a in flat(other).items())


@pytest.mark.parametrize(("batch", "tokens", "at_a_time", "stops"), [(4, 7, 21, [2, 4]), (9, 2, 6, [3, 6, 9])])
def test_batches_are_split_by_sequence(batch: int, tokens: int, at_a_time: int, stops: list[int]) -> None:
    model, seen = small_model(), []
    tune(model.backend.kernels, training_tokens=at_a_time)
    whole = model.backend.map_in_order
    model.backend.map_in_order = lambda work, parts, take: (seen.extend(parts), whole(work, parts, take))
    model.loss_and_grad(ids(0, batch, tokens), labels=ids(0, batch, tokens))
    assert [at.stop for at, _ in seen] == stops
    assert abs(sum(share for _, share in seen) - 1) < 1e-15


def test_a_gradient_of_one_number_is_summed_over_the_parts_too() -> None:
    """NumPy gives no array for a sum over all axes: nothing can be added to it in place."""
    model, norms, once = small_model(), [], refdiff.DiffLlamaForCausalLM._one_loss_and_grad

    def with_a_scalar(*given: Any) -> Any:
        loss, grads = once(model, *given)
        norms.append(grads["model"]["norm"]["weight"].sum())
        grads["model"]["norm"]["weight"] = norms[-1]
        return loss, grads

    model._one_loss_and_grad = with_a_scalar
    tune(model.backend.kernels, training_tokens=14)
    _, grads = model.loss_and_grad(ids(0, 4, 7), labels=ids(0, 4, 7))
    assert len(norms) == 2
    assert grads["model"]["norm"]["weight"] == norms[0] + norms[1]


def test_packed_sequences_have_the_gradients_of_their_batch() -> None:
    """One row with two texts: the mean over both of what each by itself has."""
    model = small_model()
    positions = np.array([[0, 1, 2, 0, 1, 2, 3]])
    labels = np.where(positions == 0, -100, IDS[:1])
    _, packed = model.loss_and_grad(IDS[:1], position_ids=positions, labels=labels)
    first, second = (flat(model.loss_and_grad(part, labels=part)[1]) for part in (IDS[:1, :3], IDS[:1, 3:]))
    for name, gradient in flat(packed).items():
        expected = (2 * first[name] + 3 * second[name]) / 5
        assert np.abs(gradient - expected).max() <= 1e-12 * np.abs(expected).max()


@pytest.mark.parametrize("tied", [True, False])
def test_tied_embeddings_get_both_gradients(tied: bool) -> None:
    model = small_model(tie_word_embeddings=tied)
    assert ("lm_head" in model.params) != tied
    assert error_of_slope(model, {"input_ids": IDS, "labels": IDS}) < ROUGH


def test_embeddings_in_place_of_ids() -> None:
    model = small_model()
    given = model.params["model"]["embed_tokens"]["weight"][IDS]
    loss, grads = model.loss_and_grad(inputs_embeds=given, labels=IDS)
    expected, by_ids = model.loss_and_grad(IDS, labels=IDS)
    np.testing.assert_allclose(loss, expected, rtol=1e-12)
    assert not np.any(grads["model"]["embed_tokens"]["weight"])
    np.testing.assert_allclose(grads["lm_head"]["weight"], by_ids["lm_head"]["weight"], rtol=1e-9, atol=1e-14)


def test_the_padding_token_is_not_trained_by_being_looked_up() -> None:
    model = small_model()
    with_padding = IDS.copy()
    with_padding[0, 1] = model.config.pad_token_id
    _, grads = model.loss_and_grad(with_padding, labels=IDS)
    assert not np.any(grads["model"]["embed_tokens"]["weight"][0])
    assert np.any(grads["model"]["embed_tokens"]["weight"][with_padding[0, 0]])
    _, grads = model.loss_and_grad(np.full_like(IDS, model.config.pad_token_id), labels=IDS)
    assert not np.any(grads["model"]["embed_tokens"]["weight"])


def test_lambda_of_v2_calls_the_parts_that_replace_its_own() -> None:
    model, seen = small_model(variant="v2", kernels="reference"), []

    def wrap(name: str, f: Any) -> Any:
        return lambda *args, **options: (seen.append(name), f(*args, **options))[1]

    model.ops = overlay(model.ops, wrap)
    model.loss_and_grad(IDS, labels=IDS)
    first = seen.index("diff_lambda_v2")
    assert {*seen[first + 1 : first + 3]} == {"linear", "activation"}
    back = seen.index("diff_lambda_v2_vjp")
    assert {"activation_vjp", "linear_vjp"} <= {*seen[back + 1 : back + 5]}


def test_a_thousandth_in_any_gradient_is_seen() -> None:
    model = small_model(attention_bias=True)
    options = {"input_ids": IDS, "labels": IDS}
    parts = ("embed_tokens.weight", "q_proj.weight", "lambda_q1", "o_proj.bias", "down_proj.weight", "norm.weight")
    for part in parts:
        names = [name for name in flat(model.params) if name.endswith(part)]
        assert error_of_slope(model, options, dict.fromkeys(names, 1e-3)) > ROUGH, part


@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize("variant", VARIANT_NAMES)
def test_on_a_device(away: Place, kind: type, variant: str) -> None:
    here = small_model(kind, variant=variant, num_labels=3)
    there = small_model(kind, variant=variant, num_labels=3, **away.choice)
    options = targets(kind)
    expected, grads = here.loss_and_grad(IDS, **options)
    loss, theirs = there.loss_and_grad(IDS, **options)
    assert away.holds(loss)
    assert abs(float(loss) - float(expected)) < 1e-12
    mine = flat(grads)
    for name, gradient in weights.flatten(theirs).items():
        assert away.holds(gradient)
        scale = np.abs(mine[name]).max()
        # a shift of all logits changes no loss, so the bias of qa_outputs has a gradient of nothing but roundings
        assert np.abs(arrays.to_numpy(gradient) - mine[name]).max() <= 1e-11 * scale + 1e-14, name


@pytest.mark.parametrize("kernels", ["fast", "reference"])
@pytest.mark.parametrize("kind", HEADS)
def test_gradients_have_the_precision_of_the_weights(kind: type, kernels: str) -> None:
    exact = small_model(kind, num_labels=3)
    single = weights.nest({name: a.astype(np.float32) for name, a in flat(exact.params).items()})
    model = kind(exact.config, single, kernels=kernels)
    loss, grads = model.loss_and_grad(IDS, **targets(kind))
    assert {a.dtype for a in (loss, *flat(grads).values())} == {np.dtype(np.float32)}


@pytest.mark.parametrize("variant", VARIANT_NAMES)
def test_a_second_backward_pass_is_refused(variant: str) -> None:
    model = small_model(variant=variant)
    hidden, context = model._embed(IDS, None, use_cache=False)
    last, back = diffllama_vjp.diffllama(model.base_params, hidden, context)
    back(last)
    with pytest.raises(RuntimeError, match="diffllama_vjp: back: got a second call, expected one; run the forward"):
        back(last)


def test_without_labels_there_is_no_loss() -> None:
    with pytest.raises(ValueError, match="labels: got none"):
        small_model().loss_and_grad(IDS)
    with pytest.raises(ValueError, match="end_positions: got none"):
        small_model(refdiff.DiffLlamaForQuestionAnswering).loss_and_grad(IDS, start_positions=[1, 2])
    with pytest.raises(ValueError, match="input_ids, inputs_embeds: got both or none"):
        small_model().loss_and_grad(labels=IDS)


def test_parameters_and_inputs_are_not_written_to() -> None:
    model = small_model()
    before = {name: a.copy() for name, a in flat(model.params).items()}
    model.loss_and_grad(IDS, labels=IDS)
    for name, a in flat(model.params).items():
        np.testing.assert_array_equal(a, before[name])
    assert model.config.to_dict() == small_config().to_dict()
