"""Positions, passes and memory of a text that grows."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from refdiff.backends import Backend
from refdiff.generation.context import DecodingContext
from refdiff.model import cache as cache_module
from tests.generation.fakes import FakeModel
from tests.model.models import small_model

IDS = np.array([[0, 0, 5, 6], [0, 7, 8, 9]])
MASK = np.array([[0, 0, 1, 1], [0, 1, 1, 1]])


def test_positions_count_what_is_not_masked() -> None:
    seen: list[tuple[Any, Any]] = []

    class Seen(FakeModel):
        def __call__(self, input_ids: np.ndarray, **options: Any) -> SimpleNamespace:
            seen.append((options["attention_mask"], options["position_ids"]))
            return super().__call__(input_ids, **options)

    context = DecodingContext(Seen(), MASK)
    context.read(IDS)
    context.read(np.concatenate([IDS, [[3, 4], [5, 6]]], axis=1), keep=2)
    masks, positions = zip(*seen, strict=True)
    np.testing.assert_array_equal(positions[0], [[0, 0, 0, 1], [0, 0, 1, 2]])
    np.testing.assert_array_equal(positions[1], [[2, 3], [3, 4]])
    np.testing.assert_array_equal(masks[1], [[0, 0, 1, 1, 1, 1], [0, 1, 1, 1, 1, 1]])


@pytest.mark.parametrize(("kind", "calls"), [("dynamic", 1), ("longrope", 1), ("llama3", 2), ("default", 2)])
def test_prompts_are_not_chunked_if_rope_depends_on_the_length(
    kind: str, calls: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Backend, "chunk_size", 4)
    model = FakeModel(rope_parameters={"rope_type": kind})
    DecodingContext(model, None).read(IDS)
    assert len(model.calls) == calls


@pytest.mark.parametrize(
    ("options", "rows"),
    [({}, 2), ({"do_sample": True, "seed": 1}, 2), ({"num_beams": 3}, 6)],
)
@pytest.mark.parametrize(("prompt", "new"), [(5, 7), (3, 40)])
def test_the_cache_reserves_the_length_of_the_text_and_is_not_copied(
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


def test_a_long_limit_does_not_reserve_all_capacity_at_once() -> None:
    out = small_model().generate(
        [[3, 5]], max_new_tokens=5_000, eos_token_id=list(range(53)), return_dict_in_generate=True
    )
    assert out.cache.buffers[0].shape[2] == 258
