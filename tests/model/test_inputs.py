"""What a user may pass, and what each mistake is told."""

import numpy as np
import pytest

import refdiff
from refdiff.model import inputs
from tests.model.models import small_config


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([1, 2], r"input_ids: got shape \(2,\), expected \(B, T\): for one sequence write input_ids\[None\]"),
        ([[]], r"input_ids: got shape \(1, 0\), expected at least one sequence and one token"),
        (np.zeros((2, 0), int), "expected at least one sequence and one token"),
        ([[1.5]], "got dtype float64, expected integers"),
        ([[True]], "got dtype bool"),
        ([[1, 2], [1]], "input_ids: got sequences of different lengths, expected one length; pad them"),
    ],
)
def test_token_ids_refused(ids, message):
    with pytest.raises(ValueError, match=message):
        inputs.token_ids(ids)


def test_too_deeply_nested_lists_are_not_reported_as_ragged():
    deep = [1]
    for _ in range(70):
        deep = [deep]
    with pytest.raises(ValueError, match="maximum number of dimension"):
        inputs.host("labels", deep)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            [["Once"]],
            r'^labels: got a text, expected token ids; call tokenizer\(text, return_tensors="np"\)\["input_ids"\]$',
        ),
        ([{"input_ids": [1]}], r"^labels: got dict, expected token ids; unpack it, as in model\(\*\*inputs\)$"),
    ],
)
def test_texts_and_dicts_in_place_of_integers_are_refused_with_the_fix(given, message):
    with pytest.raises(TypeError, match=message):
        inputs.integers("labels", given)


def test_a_mask_of_three_axes_is_told_the_shapes_that_there_are():
    model = refdiff.DiffLlamaForCausalLM(small_config())
    message = r"^attention_mask: got shape \(1, 3, 3\), expected \(B, S\) or \(B, 1 or H, T, S\)$"
    with pytest.raises(ValueError, match=message):
        model([[1, 2, 3]], attention_mask=np.ones((1, 3, 3), int))


def test_positions_continue_after_the_cache():
    np.testing.assert_array_equal(inputs.positions(None, 2, 3, 5), [[5, 6, 7]])
    np.testing.assert_array_equal(inputs.positions([[4, 0, 9]], 2, 3, 5), [[4, 0, 9]])
    np.testing.assert_array_equal(inputs.positions([[4, 2, 9], [0, 1, 2]], 2, 3, 5), [[4, 2, 9], [0, 1, 2]])


@pytest.mark.parametrize(
    ("positions", "message"),
    [
        ([[1, 2]], r"position_ids: got shape \(1, 2\), expected \(2, 3\)"),
        ([[0, 1, -1], [0, 1, 2]], "position_ids: got -1, expected 0 or more"),
        ([[0.0, 1.0, 2.0]], "position_ids: got dtype float64, expected integers"),
    ],
)
def test_positions_refused(positions, message):
    with pytest.raises(ValueError, match=message):
        inputs.positions(positions, 2, 3, 0)


def test_a_mask_that_hides_nothing_is_none():
    for dtype in (float, int, bool):
        assert inputs.two_dimensional_mask(np.ones((2, 3), dtype), 2, 3) is None
        seen = inputs.two_dimensional_mask(np.array([[0, 1, 1], [1, 1, 1]], dtype), 2, 3)
        np.testing.assert_array_equal(seen, [[False, True, True], [True, True, True]])


def test_a_mask_shorter_than_the_cache_is_refused():
    with pytest.raises(ValueError, match=r"attention_mask: got shape \(2, 3\), expected \(2, 5\).*those in the cache"):
        inputs.two_dimensional_mask(np.ones((2, 3)), 2, 5)


@pytest.mark.parametrize(("value", "shown"), [(2, "2"), (-1e9, "-1000000000.0"), (np.nan, "nan")])
def test_a_two_dimensional_mask_of_other_values_is_refused(value, shown):
    message = rf"attention_mask: got {shown}, expected 0 \(hidden\) or 1 \(visible\).*\(B, 1 or H, T, S\)"
    with pytest.raises(ValueError, match=message):
        inputs.two_dimensional_mask(np.array([[value, 0, 1]]), 1, 3)
    with pytest.raises(ValueError, match=message):
        refdiff.DiffLlamaForCausalLM.from_config(small_config())([[1, 2, 3]], attention_mask=[[value, 0, 1]])


@pytest.mark.parametrize("name", ["attention_mask", "inputs_embeds", "labels", "logits_to_keep", "position_ids"])
def test_type_errors_name_the_argument(name):
    model = refdiff.DiffLlamaForCausalLM.from_config(small_config())
    ids = {} if name == "inputs_embeds" else {"input_ids": [[1, 2, 3]]}
    with pytest.raises(TypeError, match=f"^{name}: got set, expected an array or nested lists of numbers$"):
        model(**ids, **{name: {1}})


def test_texts_in_place_of_numbers_are_refused():
    message = "labels: got dtype <U3, expected numbers"
    with pytest.raises(ValueError, match=message):
        inputs.numbers("labels", ["yes", "no"])
    model = refdiff.DiffLlamaForSequenceClassification.from_config(small_config())
    for call in (model, model.loss_and_grad):
        with pytest.raises(ValueError, match=message):
            call([[1, 2]], labels=["yes"])
    with pytest.raises(TypeError, match="labels: got str, expected an array or nested lists of numbers"):
        model([[1, 2]], labels="yes")


def test_boolean_and_additive_masks():
    boolean = np.array([[[[True, False], [True, True]]]])
    mask, bias = inputs.four_dimensional_mask(boolean, 1, 4, 2, 2)
    assert mask is boolean
    assert bias is None
    for lowest in (-np.inf, np.finfo(np.float32).min):
        added = np.array([[[[0.5, lowest], [0, 0]]]], np.float32)
        mask, bias = inputs.four_dimensional_mask(added, 1, 4, 2, 2)
        np.testing.assert_array_equal(mask, boolean)
        np.testing.assert_array_equal(bias, [[[[0.5, 0], [0, 0]]]])
    mask, bias = inputs.four_dimensional_mask(np.zeros((1, 1, 2, 2)), 1, 4, 2, 2)
    assert mask is bias is None


@pytest.mark.parametrize("shape", [(1, 1, 1, 2), (3, 1, 2, 2), (1, 4, 2, 2), (3, 4, 2, 2)])
def test_a_mask_may_be_one_for_all_sequences_heads_or_queries(shape):
    mask, _ = inputs.four_dimensional_mask(np.zeros(shape, bool), 3, 4, 2, 2)
    assert mask.shape == shape


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (np.zeros((1, 3, 2, 2)), r"got shape \(1, 3, 2, 2\), expected \(1, 1 or 4, 2, 2\)"),
        (np.zeros((3, 1, 2, 2)), r"got shape \(3, 1, 2, 2\), expected"),
        (np.zeros((1, 1, 2, 3)), r"got shape \(1, 1, 2, 3\), expected"),
        (np.zeros((1, 1, 3, 2)), r"got shape \(1, 1, 3, 2\), expected"),
        (np.zeros((1, 1, 2, 2), int), "got dtype int64 in four dimensions, expected boolean .* or floating-point"),
    ],
)
def test_four_dimensional_masks_refused(mask, message):
    with pytest.raises(ValueError, match=message):
        inputs.four_dimensional_mask(mask, 1, 4, 2, 2)


def test_ids_outside_the_vocabulary_are_refused():
    model = refdiff.DiffLlamaForCausalLM.from_config(small_config(vocab_size=7))
    for ids, wrong in (([[0, 7]], 7), ([[-1, 7]], -1)):
        message = f"input_ids: got token id {wrong}, expected 0 to 6; use the tokenizer of this checkpoint"
        for refuse in (lambda x: inputs.check_known(np.array(x), 7), model, model.generate):
            with pytest.raises(IndexError, match=f"^{message}$"):
                refuse(ids)
    inputs.check_known(np.array([[0, 6]]), 7)
