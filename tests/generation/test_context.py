"""Only new tokens are read; positions and masks as transformers' generate has them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from refdiff.backends import Backend
from refdiff.backends.cupy.tuning import Tuning
from refdiff.generation.context import DecodingContext
from refdiff.model import cache as cache_module
from tests.generation.fakes import FakeModel
from tests.model.models import small_model

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
    context = DecodingContext(model, MASK)
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
    DecodingContext(model, None).read(IDS)
    assert model.seen == [(None, None)]


def test_reading_in_pieces_forgetting_and_taking_rows() -> None:
    rng = np.random.default_rng(0)
    more = np.concatenate([IDS, rng.integers(3, 20, (2, 5))], axis=1)
    want = DecodingContext(FakeModel(), MASK).read(more, keep=3)
    context = DecodingContext(FakeModel(), MASK)
    context.read(IDS)
    wrong = more.copy()
    wrong[:, 6:] = 11
    context.read(wrong)
    context.crop(6)
    context.crop(99)
    assert context.length == 6
    np.testing.assert_allclose(context.read(more, keep=3), want, rtol=1e-12)
    context.reorder(np.array([1, 0, 1]))
    longer = np.concatenate([more, [[3], [4]]], axis=1)
    got = context.read(longer[[1, 0, 1]])
    np.testing.assert_allclose(got, DecodingContext(FakeModel(), MASK).read(longer)[[1, 0, 1]], rtol=1e-12)


def test_hidden_states_are_those_of_all_new_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Backend, "chunk_size", 2)
    context = DecodingContext(FakeModel(), None)
    logits, hidden = context.read_hidden(IDS)
    np.testing.assert_allclose(logits, hidden[:, -1] @ FakeModel().W.T)
    assert hidden.shape == (2, 4, 7)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("keep", [1, 3])
def test_a_long_prompt_is_read_in_pieces(masked: bool, keep: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    ids, mask = rng.integers(3, 20, (2, 11)), None
    if masked:
        mask = np.ones((2, 11), dtype=np.int64)
        mask[1, :6] = 0  # a whole piece of nothing
    want = DecodingContext(FakeModel(), mask).read(ids, keep)
    monkeypatch.setattr(Backend, "chunk_size", 9)  # of two rows 4 tokens each
    model = FakeModel()
    context = DecodingContext(model, mask)
    np.testing.assert_allclose(context.read(ids, keep), want, rtol=1e-12)
    assert model.calls == [(2, 4), (2, 4), (2, 3)]
    more = np.concatenate([ids, rng.integers(3, 20, (2, 5))], axis=1)
    model.calls.clear()
    np.testing.assert_allclose(
        context.read(more, keep), DecodingContext(FakeModel(), _longer(mask)).read(more, keep), rtol=1e-12
    )
    assert model.calls == ([(2, 4), (2, 1)] if keep == 1 else [(2, 5)]), "the last pass has all that is asked for"


def test_progress_is_told_before_each_piece_of_a_long_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Backend, "chunk_size", 4)
    told: list[tuple[str, int, int]] = []
    ids = np.random.default_rng(0).integers(3, 20, (1, 11))
    context = DecodingContext(FakeModel(), None, progress=lambda *said: told.append(said))
    context.read(ids[:, :10])
    assert told == [("prompt", 0, 10), ("prompt", 4, 10), ("prompt", 8, 10)]
    context.read(ids)  # one more token is no prompt
    assert len(told) == 3


def _longer(mask: Any) -> Any:
    return None if mask is None else np.concatenate([mask, np.ones((2, 5), dtype=np.int64)], axis=1)


def test_more_rows_than_a_piece_are_read_token_by_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Backend, "chunk_size", 1)
    model = FakeModel()
    DecodingContext(model, None).read(IDS)
    assert model.calls == [(2, 1)] * 4


@pytest.mark.parametrize(
    ("chunk_size", "calls"),
    [(Backend.chunk_size, [(2, 512), (2, 512), (2, 476)]), (2000, [(2, 1000), (2, 500)]),
     (Tuning.prompt_tokens, [(2, 1500)])],
)  # fmt: skip
def test_the_backend_says_how_many_tokens_it_reads_at_once(chunk_size: int, calls: list[tuple[int, int]]) -> None:
    model = FakeModel()
    model.backend.chunk_size = chunk_size
    DecodingContext(model, None).read(np.full((2, 1500), 5))
    assert model.calls == calls


@pytest.mark.parametrize(("kind", "calls"), [("dynamic", 1), ("longrope", 1), ("llama3", 2), ("default", 2)])
def test_a_text_whose_length_changes_its_positions_is_read_at_once(
    kind: str, calls: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Backend, "chunk_size", 4)
    model = FakeModel(rope_parameters={"rope_type": kind})
    DecodingContext(model, None).read(IDS)
    assert len(model.calls) == calls


@pytest.mark.parametrize(
    ("options", "rows"),
    [({}, 2), ({"do_sample": True, "seed": 1}, 2), ({"num_beams": 3}, 6), ({"penalty_alpha": 0.6, "top_k": 4}, 2)],
)
@pytest.mark.parametrize(("prompt", "new"), [(5, 7), (3, 40)])
def test_the_cache_has_room_for_the_text_and_no_more_and_is_not_copied(
    options: dict[str, Any], rows: int, prompt: int, new: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    allocated: list[int] = []
    grown = cache_module._grown

    def counted(like: Any, size: int, old: Any, used: int) -> Any:
        allocated.append(size)
        return grown(like, size, old, used)

    monkeypatch.setattr(cache_module, "_grown", counted)
    model = small_model(max_position_embeddings=512)
    ids = np.random.default_rng(1).integers(3, 50, size=(2, prompt))
    out = model.generate(ids, max_new_tokens=new, eos_token_id=None, return_dict_in_generate=True, **options)
    assert allocated == [prompt + new] * 2 * model.config.num_hidden_layers
    assert out.cache.buffers[0].shape[:3:2] == (rows, prompt + new)


def test_a_prompt_in_pieces_has_its_room_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Backend, "chunk_size", 8)
    context = DecodingContext(small_model(max_position_embeddings=512), None, 5_000)
    context.read(np.full((2, 400), 3))
    assert {x.shape[2] for x in context.cache.buffers} == {656}, "half as much again is less than 256 more"


def test_a_text_that_may_get_long_does_not_have_its_room_at_once() -> None:
    out = small_model().generate(
        [[3, 5]], max_new_tokens=5_000, eos_token_id=list(range(53)), return_dict_in_generate=True
    )
    assert out.cache.buffers[0].shape[2] == 258
