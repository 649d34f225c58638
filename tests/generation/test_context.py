"""Only new tokens are read; positions and masks as transformers' generate has them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np

from refdiff.generation.context import Context
from tests.generation.fakes import FakeModel

IDS = np.array([[0, 0, 5, 6], [0, 7, 8, 9]])
MASK = np.array([[0, 0, 1, 1], [0, 1, 1, 1]])


class Seen(FakeModel):
    """Keeps the masks and positions that it is called with."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[Any, Any]] = []

    def __call__(self, input_ids: np.ndarray, **options: Any) -> SimpleNamespace:
        self.seen.append((options.get("attention_mask"), options.get("position_ids")))
        return super().__call__(input_ids, **options)


def test_positions_count_what_is_not_masked() -> None:
    model = Seen()
    context = Context(model, MASK)
    context.read(IDS)
    more = np.concatenate([IDS, [[3, 4], [5, 6]]], axis=1)
    context.read(more, keep=2)
    masks, positions = zip(*model.seen, strict=True)
    np.testing.assert_array_equal(positions[0], [[0, 0, 0, 1], [0, 0, 1, 2]])
    np.testing.assert_array_equal(positions[1], [[2, 3], [3, 4]])
    np.testing.assert_array_equal(masks[1], [[0, 0, 1, 1, 1, 1], [0, 1, 1, 1, 1, 1]])
    assert model.calls == [(2, 4), (2, 2)]


def test_without_a_mask_nothing_is_passed() -> None:
    model = Seen()
    Context(model, None).read(IDS)
    assert model.seen == [(None, None)]


def test_reading_in_pieces_forgetting_and_taking_rows() -> None:
    rng = np.random.default_rng(0)
    more = np.concatenate([IDS, rng.integers(3, 20, (2, 5))], axis=1)
    want = Context(FakeModel(), MASK).read(more, keep=3)
    context = Context(FakeModel(), MASK)
    context.read(IDS)
    wrong = more.copy()
    wrong[:, 6:] = 11
    context.read(wrong)
    context.forget(6)
    context.forget(99)
    assert context.length == 6
    np.testing.assert_allclose(context.read(more, keep=3), want, rtol=1e-12)
    context.take(np.array([1, 0, 1]))
    longer = np.concatenate([more, [[3], [4]]], axis=1)
    got = context.read(longer[[1, 0, 1]])
    np.testing.assert_allclose(got, Context(FakeModel(), MASK).read(longer)[[1, 0, 1]], rtol=1e-12)


def test_padding_changes_nothing() -> None:
    padded = Context(FakeModel(), MASK).read(IDS)[1]
    np.testing.assert_allclose(padded, Context(FakeModel(), None).read(IDS[1:, 1:])[0], rtol=1e-12)


def test_hidden_states() -> None:
    context = Context(FakeModel(), None)
    logits, hidden = context.read_hidden(IDS)
    np.testing.assert_allclose(logits, hidden[:, -1] @ FakeModel().W.T)
    assert hidden.shape == (2, 4, 7)
