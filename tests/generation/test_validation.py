"""Ids, masks, lengths and seeds as a user gives them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from refdiff.errors import CheckpointError
from refdiff.generation import generate
from refdiff.generation.options import Options
from refdiff.generation.validation import read_ids, read_lengths, read_mask, read_seed
from tests.generation.fakes import FakeModel


def test_ids_become_int64() -> None:
    for given in ([[1, 2], [3, 4]], np.array([[1, 2], [3, 4]], dtype=np.uint8), ((1, 2), (3, 4))):
        got = read_ids(given, None, 5)
        np.testing.assert_array_equal(got, [[1, 2], [3, 4]])
        assert got.dtype == np.int64


def test_an_empty_prompt_starts_from_bos() -> None:
    np.testing.assert_array_equal(read_ids(None, 1, 5), [[1]])
    np.testing.assert_array_equal(read_ids(np.empty((3, 0), dtype=np.int64), 1, 5), [[1], [1], [1]])
    np.testing.assert_array_equal(read_ids([[], []], 1, 5), [[1], [1]])
    for bos in (5, -1, "x", [1], True):
        with pytest.raises(CheckpointError, match=r"bos_token_id: got .*, expected 0 to 4"):
            read_ids([[]], bos, 5)
    with pytest.raises(
        ValueError, match="input_ids: got no token, expected one or more, as the model has no bos_token_id"
    ):
        read_ids([[]], None, 5)


@pytest.mark.parametrize(
    ("ids", "error", "message"),
    [
        (np.empty((0, 3), dtype=int), ValueError, "got shape .0, 3., expected at least one sequence"),
        ([[1, 2], [3]], ValueError, "input_ids: got sequences of different lengths, expected one length; pad them"),
        ([[1.0, 2.0]], ValueError, "input_ids: got dtype float64, expected integers"),
        ([[1, 2], [3, 5]], IndexError, "^input_ids: got token id 5, expected 0 to 4; use the tokenizer of this "),
    ],
)
def test_wrong_ids(ids: Any, error: type[Exception], message: str) -> None:
    """tests/model/test_inputs.py has the others of what a model refuses."""
    with pytest.raises(error, match=message):
        read_ids(ids, 1, 5)


IDS = np.array([[0, 3, 4], [3, 0, 4]])


def test_padding_is_recognized_by_its_id_unless_it_is_an_end_token() -> None:
    np.testing.assert_array_equal(read_mask(None, IDS, Options(pad_token_id=0)), [[0, 1, 1], [1, 0, 1]])
    assert read_mask(None, IDS, Options(pad_token_id=0, eos_token_id=[2, 0])) is None
    assert read_mask(None, IDS, Options(pad_token_id=9)) is None
    assert read_mask(None, IDS, Options()) is None


def test_a_mask_that_hides_nothing_is_none() -> None:
    assert read_mask(np.ones((2, 3), dtype=bool), IDS, Options(pad_token_id=0)) is None
    np.testing.assert_array_equal(read_mask([[0, 1, 1], [1, 1, 1]], IDS, Options()), [[0, 1, 1], [1, 1, 1]])


def test_wrong_masks() -> None:
    with pytest.raises(ValueError, match=r"^attention_mask: got shape \(2, 2\), expected \(2, 3\), the shape of "):
        read_mask([[1, 1], [1, 1]], IDS, Options())
    with pytest.raises(ValueError, match=r"^attention_mask: got 2, expected 0 \(padding\) or 1 \(token\)$"):
        read_mask([[0, 1, 2], [1, 1, 1]], IDS, Options())
    with pytest.raises(ValueError, match=r"^attention_mask: got sequences of different lengths, expected one length"):
        read_mask([[0, 1], [1, 1, 1]], IDS, Options())
    with pytest.raises(TypeError, match=r"^attention_mask: got dict, expected an array or nested lists of numbers"):
        read_mask({"max_new_tokens": 3}, IDS, Options())  # transformers' second argument is another one
    with pytest.warns(UserWarning, match="padded on the right"):
        read_mask([[1, 1, 0], [1, 1, 1]], IDS, Options())


def limit_of(options: Options, tokens: int, positions: int | None) -> int:
    model = FakeModel()
    model.config.max_position_embeddings = positions
    return read_lengths(model, options, np.zeros((1, tokens), np.int64), 0)[1]


@pytest.mark.parametrize(
    ("options", "tokens", "positions", "limit"),
    [
        (Options(), 5, 64, 25),
        (Options(), 50, 64, 64),
        (Options(), 50, None, 70),
        (Options(max_length=7), 5, 64, 7),
        (Options(max_length=7, max_new_tokens=9), 5, 64, 14),
        (Options(max_new_tokens=100), 5, 64, 105),
    ],
)
def test_lengths(options: Options, tokens: int, positions: int | None, limit: int) -> None:
    assert limit_of(options, tokens, positions) == limit


def test_a_prompt_that_fills_the_limit() -> None:
    with pytest.raises(
        ValueError, match="input_ids: got 7 tokens, expected fewer than the length limit 7; raise max_length"
    ):
        limit_of(Options(max_length=7), 7, 64)


def test_a_minimum_that_does_not_fit() -> None:
    with pytest.warns(UserWarning, match="min_new_tokens is 9, but only 4 fit"):
        limit_of(Options(max_new_tokens=4, min_new_tokens=9), 5, 64)


def test_seeds() -> None:
    assert read_seed(7, None, 3, draws=True) == 7
    assert read_seed(np.int32(7), None, 3, draws=True) == 7
    generator, same = np.random.default_rng(0), np.random.default_rng(0)
    assert read_seed(None, generator, 3, draws=False) == 0
    first, second = (read_seed(None, generator, 3, draws=True) for _ in range(2))
    assert first == read_seed(None, same, 3, draws=True) != second
    for several in ([7, 0, 7], np.array([7, 0, 7])):
        assert read_seed(several, None, 3, draws=True) == (7, 0, 7)


@pytest.mark.parametrize(
    ("seed", "generator", "error", "message"),
    [
        (1, np.random.default_rng(0), ValueError, "got both, expected one"),
        (-1, None, ValueError, "seed: got -1, expected an integer from 0"),
        (True, None, TypeError, "an integer"),
        ("x", None, TypeError, "seed: got 'x', expected an integer"),
        ([1, -2, 3], None, ValueError, "seed: got -2, expected an integer from 0"),
        ([1, 2], None, ValueError, r"seed: got shape \(2,\), expected one integer, or \(3,\), one a prompt"),
        (None, np.random.RandomState(0), TypeError, "numpy.random.Generator"),
    ],
)
def test_wrong_seeds(seed: Any, generator: Any, error: type[Exception], message: str) -> None:
    for do_sample in (False, True):
        with pytest.raises(error, match=message):
            generate(FakeModel(), [[3]] * 3, seed=seed, generator=generator, do_sample=do_sample)


def test_greedy_text_draws_nothing_from_the_generator() -> None:
    generator = np.random.default_rng(0)
    generate(FakeModel(), [[3]], generator=generator)
    assert generator.integers(2**32) == np.random.default_rng(0).integers(2**32)
