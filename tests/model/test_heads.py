"""The five classes: what each adds to the decoder."""

import re
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest

import refdiff
from refdiff.generation import generate
from tests.backends.tuned import tune
from tests.model.models import CLASSES, ids, small_model

TOKENS = ids(0, 2, 7)


def hidden_of(model, **inputs):
    """What the base model with the same weights gives."""
    base = refdiff.DiffLlamaModel(model.config, model.base_params, dtype="float64")
    return base(**({"input_ids": TOKENS} | inputs)).last_hidden_state


@pytest.mark.parametrize("tied", [False, True])
def test_causal_lm(tied):
    model = small_model(tie_word_embeddings=tied)
    weight = model.params["model"]["embed_tokens"]["weight"] if tied else model.params["lm_head"]["weight"]
    assert ("lm_head" in model.params) != tied
    out = model(TOKENS, labels=TOKENS)
    np.testing.assert_allclose(out.logits, hidden_of(model) @ weight.T, rtol=1e-12, atol=1e-12)
    z = out.logits[:, :-1]
    logp = z - np.log(np.exp(z).sum(axis=-1, keepdims=True))
    expected = -np.take_along_axis(logp, TOKENS[:, 1:, None], axis=-1).mean()
    np.testing.assert_allclose(out.loss, expected, rtol=1e-12)


@pytest.mark.parametrize(
    ("keep", "index"),
    [
        (0, np.s_[:]), (1, np.s_[:, -1:]), (3, np.s_[:, -3:]), (np.array([0, 5, -1]), np.s_[:, [0, 5, 6]]),
        ([2, 2], np.s_[:, [2, 2]]), ([-7], np.s_[:, [0]]), (TOKENS % 2 == 0, TOKENS % 2 == 0),
    ],
)  # fmt: skip
def test_logits_to_keep(keep, index):
    model = small_model()
    np.testing.assert_allclose(model(TOKENS, logits_to_keep=keep).logits, model(TOKENS).logits[index], atol=1e-12)


@pytest.mark.parametrize("count", [2, 7])
def test_positions_of_each_sequence(count):
    model, tokens = small_model(), ids(1, 3, 7)
    keep = np.random.default_rng(2).integers(-7, 7, size=(3, count))
    expected = model(tokens).logits[np.arange(3)[:, None], keep]
    np.testing.assert_allclose(model(tokens, logits_to_keep=keep).logits, expected, atol=1e-12)


@pytest.mark.parametrize(
    ("keep", "error", "message"),
    [
        ([7], IndexError, "logits_to_keep: got 7 to 7, expected -7 to 6"),
        ([-8], IndexError, "expected -7 to 6"),
        ([[1], [2], [3]], ValueError, r"got shape \(3, 1\), expected \(n,\) or \(2, n\)"),
        ([0.5], ValueError, "logits_to_keep: got dtype float64, expected integers"),
        (np.ones((2, 2, 2), int), ValueError, r"got shape \(2, 2, 2\)"),
        (None, TypeError, "logits_to_keep: got NoneType, expected an array or nested lists of numbers"),
    ],
)
def test_logits_to_keep_refused(keep, error, message):
    with pytest.raises(error, match=message):
        small_model()(TOKENS, logits_to_keep=keep)


def test_sequence_classification_pools_each_sequence_at_its_last_real_token():
    model = small_model(refdiff.DiffLlamaForSequenceClassification)
    tokens = ids(1, 3, 7)
    tokens[0, :3], tokens[1, 2:], tokens[2, 5:] = 0, 0, 0
    pooled = hidden_of(model, input_ids=tokens)[[0, 1, 2], [6, 1, 4]]
    out = model(tokens, labels=[1, 0, 1])
    np.testing.assert_allclose(out.logits, pooled @ model.params["score"]["weight"].T, atol=1e-12)
    assert out.loss.shape == ()


def test_sequence_classification_without_a_padding_token():
    model = small_model(refdiff.DiffLlamaForSequenceClassification, pad_token_id=None)
    with pytest.raises(ValueError, match=r"^pad_token_id: got none .* 2 sequences.*; set model.config.pad_token_id,"):
        model(TOKENS)
    last = hidden_of(model, input_ids=TOKENS[:1])[:, -1]
    np.testing.assert_allclose(model(TOKENS[:1]).logits, last @ model.params["score"]["weight"].T, atol=1e-12)


def test_token_classification():
    model = small_model(refdiff.DiffLlamaForTokenClassification, num_labels=4)
    out = model(TOKENS, labels=TOKENS % 4)
    score = model.params["score"]
    np.testing.assert_allclose(out.logits, hidden_of(model) @ score["weight"].T + score["bias"], atol=1e-12)
    assert float(out.loss) > 0


def test_question_answering():
    model = small_model(refdiff.DiffLlamaForQuestionAnswering)
    out = model(TOKENS, start_positions=[1, 2], end_positions=[3, 99])
    both = hidden_of(model) @ model.params["qa_outputs"]["weight"].T + model.params["qa_outputs"]["bias"]
    np.testing.assert_allclose(out.start_logits, both[..., 0], atol=1e-12)
    np.testing.assert_allclose(out.end_logits, both[..., 1], atol=1e-12)
    logp = both - np.log(np.exp(both).sum(axis=1, keepdims=True))
    starts, end = (logp[0, 1, 0] + logp[1, 2, 0]) / 2, logp[0, 3, 1]  # 99 is outside the text and does not count
    np.testing.assert_allclose(out.loss, -(starts + end) / 2, rtol=1e-12)
    assert model(TOKENS, start_positions=[1, 2]).loss is None
    assert model(TOKENS, end_positions=[1, 2]).loss is None


@pytest.mark.parametrize("kind", CLASSES)
def test_every_class_passes_all_arguments_to_the_decoder(kind):
    """What the decoder sees and returns is what the base model alone does."""
    model, positions = small_model(kind), np.arange(7)[None] * 2
    base = refdiff.DiffLlamaModel(model.config, model.base_params, dtype="float64")
    mask = np.ones((2, 7), int)
    mask[1, :3] = 0
    want = base(TOKENS, mask, position_ids=positions, output_hidden_states=True).hidden_states
    out = model(TOKENS, mask, position_ids=positions, use_cache=False, output_hidden_states=True)
    for ours, theirs in zip(out.hidden_states, want, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert ("last_hidden_state" in out) == (kind is refdiff.DiffLlamaModel)
    assert (out.cache, out.attentions) == (None, None)
    cache = refdiff.KVCache(3)
    out = model(TOKENS, mask, position_ids=positions, cache=cache, output_attentions=True)
    assert len(cache) == 7
    assert out.cache is (None if kind in (TOKEN, ANSWER) else cache)
    assert out.hidden_states is None
    assert len(out.attentions) == len(out.lambdas) == len(out.differential_attentions) == 3


TARGETS = {
    refdiff.DiffLlamaForCausalLM: {"labels": TOKENS},
    refdiff.DiffLlamaForSequenceClassification: {"labels": [1, 0]},
    refdiff.DiffLlamaForTokenClassification: {"labels": TOKENS % 2},
    refdiff.DiffLlamaForQuestionAnswering: {"start_positions": [1, 2], "end_positions": [3, 4]},
}


@pytest.mark.parametrize("kind", TARGETS)
def test_loss_and_grad_passes_all_arguments_to_the_decoder(kind):
    model, positions, mask = small_model(kind), np.arange(7)[None] * 2, np.ones((2, 7), int)
    mask[1, :3] = 0
    embedded = model.base_params["embed_tokens"]["weight"][TOKENS]
    for given in ((TOKENS, mask, positions, None), (None, mask, positions, embedded)):
        loss, _ = model.loss_and_grad(*given, **TARGETS[kind])
        inputs = dict(zip(("input_ids", "attention_mask", "position_ids", "inputs_embeds"), given, strict=True))
        np.testing.assert_allclose(loss, model(**inputs, **TARGETS[kind]).loss, rtol=1e-13)


SEQUENCE, TOKEN = refdiff.DiffLlamaForSequenceClassification, refdiff.DiffLlamaForTokenClassification
CAUSAL, ANSWER = refdiff.DiffLlamaForCausalLM, refdiff.DiffLlamaForQuestionAnswering


@pytest.mark.parametrize(
    ("kind", "targets", "error", "message"),
    [
        (CAUSAL, {"labels": [1, 2, 3]}, ValueError, r"labels: got shape \(3,\), expected \(2, 7\)"),
        (CAUSAL, {"labels": TOKENS[:, :5]}, ValueError, r"labels: got shape \(2, 5\), expected \(2, 7\)"),
        (CAUSAL, {"labels": TOKENS + 53}, IndexError, "labels: got .*, expected 0 to 52, or -100"),
        (SEQUENCE, {"labels": [1, 0, 1]}, ValueError, r"labels: got shape \(3,\), expected \(2,\)"),
        (SEQUENCE, {"labels": [[1, 0, 1]] * 2}, ValueError, r"labels: got shape \(2, 3\), expected \(2,\)"),
        (SEQUENCE, {"labels": [1, 2]}, IndexError, "labels: got 2, expected 0 to 1"),
        (TOKEN, {"labels": TOKENS[0] % 2}, ValueError, r"labels: got shape \(7,\), expected \(2, 7\)"),
        (TOKEN, {"labels": TOKENS % 2 - 1}, IndexError, "labels: got -1, expected 0 to 1"),
        (ANSWER, {"start_positions": [1], "end_positions": [1, 2]}, ValueError, r"start_positions: got shape \(1,\)"),
        (ANSWER, {"start_positions": [1, 2], "end_positions": [1]}, ValueError, r"end_positions: got .* \(2,\), one"),
        (CAUSAL, {"labels": TOKENS * 0.5}, ValueError, "labels: got dtype float64, expected integers"),
        (TOKEN, {"labels": TOKENS * 0.5}, ValueError, "labels: got dtype float64, expected integers"),
        (
            ANSWER,
            {"start_positions": [0.5, 1], "end_positions": [0, 1]},
            ValueError,
            "start_positions: got dtype float",
        ),
        (ANSWER, {"start_positions": [0, 1], "end_positions": [0.5, 1]}, ValueError, "end_positions: got dtype float"),
    ],
)
def test_wrong_targets_are_refused_by_name(kind, targets, error, message):
    model, in_parts = small_model(kind), small_model(kind)
    tune(in_parts.backend.kernels, training_tokens=7)
    for call in (model, model.loss_and_grad, in_parts.loss_and_grad):
        with pytest.raises(error, match=f"^{message}"):
            call(TOKENS, **targets)


@pytest.mark.parametrize(
    ("keep", "labels", "message"),
    [
        (1, TOKENS, r"labels: got shape \(2, 7\), expected \(2, 1\)"),
        (TOKENS > 0, TOKENS, "logits_to_keep: got a boolean array and labels"),
        (-1, None, "logits_to_keep: got -1, expected 0 or more"),
    ],
)
def test_positions_that_have_no_labels_are_refused(keep, labels, message):
    model = small_model()
    with pytest.raises(ValueError, match=message):
        model(TOKENS, logits_to_keep=keep, labels=labels)


def test_labels_of_the_kept_positions():
    model = small_model()
    late = np.where(np.arange(7) < 4, -100, TOKENS)
    kept = model(TOKENS, labels=TOKENS[:, 3:], logits_to_keep=4)
    np.testing.assert_allclose(kept.loss, model(TOKENS, labels=late).loss, rtol=1e-12)


def test_the_generate_method_passes_all_arguments_on():
    model, received = small_model(), []
    streamer = SimpleNamespace(put=received.append, end=lambda: received.append("end"))
    mask = [[0, 1, 1, 1, 1, 1, 1], [1] * 7]
    options = {"max_new_tokens": 3, "do_sample": True, "eos_token_id": None}
    expected = generate(model, TOKENS, mask, seed=5, **options)
    np.testing.assert_array_equal(model.generate(TOKENS, mask, streamer, None, 5, **options), expected)
    assert (len(received), received[-1]) == (5, "end")
    drawn = [f(generator=np.random.default_rng(3), **options) for f in (model.generate, partial(generate, model))]
    np.testing.assert_array_equal(*drawn)
    with pytest.raises(ValueError, match="seed, generator: got both"):
        model.generate(TOKENS, mask, None, np.random.default_rng(3), 5)


@pytest.mark.parametrize("name", ["lables", "abel", "last"])
@pytest.mark.parametrize("kind", CLASSES)
def test_an_unknown_argument_is_refused_with_those_of_the_class(kind, name):
    known = ["input_ids", "attention_mask", *TARGETS.get(kind, {}), "position_ids", "use_cache"]
    if kind is CAUSAL:
        known.append("logits_to_keep")
    with pytest.raises(TypeError, match=f"unexpected argument '{name}'") as caught:
        small_model(kind)(TOKENS, **{name: TOKENS})
    assert set(known) <= set(re.findall(r"\w+", str(caught.value)))
    assert ("did you mean labels?" in str(caught.value)) == (name != "last" and "labels" in known)


def test_the_help_of_a_call_has_its_own_arguments_after_those_of_all():
    said = CAUSAL.__call__.__doc__
    in_order = ("Compute `logits`", "\nArgs:", " input_ids:", " output_hidden_states:", " labels:", "\nRaises:")
    places = [said.index(text) for text in in_order]
    assert places == sorted(places)
    assert said.count("Args:") == 1


@pytest.mark.parametrize("kind", CLASSES)
def test_embeddings_in_place_of_ids(kind):
    model = small_model(kind, pad_token_id=None)
    embedded = model.base_params["embed_tokens"]["weight"][TOKENS[:1]]
    a, b = model(TOKENS[:1], use_cache=False), model(inputs_embeds=embedded, use_cache=False)
    for name, value in a.items():
        np.testing.assert_allclose(b[name], value, rtol=1e-12, atol=1e-13)  # sums are of another order


@pytest.mark.parametrize(
    "inputs", [{}, {"input_ids": TOKENS, "inputs_embeds": np.zeros((2, 7, 26))}]
)  # fmt: skip
def test_exactly_one_kind_of_input(inputs):
    with pytest.raises(ValueError, match="got both or none, expected one of them"):
        small_model()(**inputs)


@pytest.mark.parametrize("shape", [(7, 26), (2, 7, 25)])
def test_embeddings_of_another_shape_are_refused_with_the_expected_one(shape):
    with pytest.raises(ValueError, match=rf"inputs_embeds: got shape {re.escape(str(shape))}, expected \(B, T, 26\)"):
        small_model()(inputs_embeds=np.zeros(shape))


def test_a_four_dimensional_mask_counts_the_tokens_in_the_cache():
    model, cache = small_model(), refdiff.KVCache(3)
    causal = np.tril(np.ones((7, 7), bool))[None, None]
    model(TOKENS[:, :4], cache=cache)
    got = model(TOKENS[:, 4:], attention_mask=causal[:, :, 4:], cache=cache).logits
    np.testing.assert_allclose(got, model(TOKENS, use_cache=False).logits[:, 4:], atol=1e-12)
    with pytest.raises(ValueError, match=r"expected \(2, 1 or 8, 3, 10\)"):
        model(TOKENS[:, 4:], attention_mask=causal[:, :, 4:], cache=cache)


def test_restarting_positions_pack_sequences_only_without_mask_and_cache():
    model = small_model()
    positions = np.array([[0, 1, 2, 0, 1, 2, 3]] * 2)
    packed = model(TOKENS, position_ids=positions, use_cache=False).logits
    np.testing.assert_allclose(packed[:, :3], model(TOKENS[:, :3]).logits, atol=1e-12)
    np.testing.assert_allclose(packed[:, 3:], model(TOKENS[:, 3:]).logits, atol=1e-12)
    together = model(TOKENS, position_ids=positions, use_cache=True).logits
    masked = model(TOKENS, position_ids=positions, attention_mask=np.ones((2, 7)), use_cache=False).logits
    np.testing.assert_allclose(together, masked, atol=1e-12)
    assert not np.allclose(together, packed)
    _, context = model._embed(TOKENS, None, np.arange(3, 10)[None], use_cache=False)
    assert context.mask is None, "positions that do not restart need none"


def test_a_cache_of_another_number_of_layers_or_type_is_refused():
    for layers in (1, 2, 4):
        with pytest.raises(ValueError, match=f"cache: got a KVCache of {layers} layers, expected 3"):
            small_model()(TOKENS, cache=refdiff.KVCache(layers))
    with pytest.raises(TypeError, match="cache: got list, expected a KVCache"):
        small_model()(TOKENS, cache=[])
    with pytest.raises(TypeError, match="use_cache: got 'no', expected True, False or None"):
        small_model()(TOKENS, use_cache="no")


def test_use_cache_follows_the_config():
    assert small_model()(TOKENS).cache is not None
    assert small_model(use_cache=False)(TOKENS).cache is None
    assert small_model()(TOKENS, use_cache=False).cache is None
    assert small_model(use_cache=False)(TOKENS, use_cache=True).cache is not None
