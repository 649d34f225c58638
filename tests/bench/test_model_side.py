"""What is measured of a model, by a side whose steps take known times."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from refdiff.bench.model_side import PATTERN, Arrivals, edited, forcing, random_ids, repetition
from refdiff.bench.side import Settings

from .fakes import FakeSide


def _opened() -> FakeSide:
    side = FakeSide()
    side.open()
    side.did.clear()
    return side


def test_open() -> None:
    side = FakeSide()
    assert side.open() == {"seconds": 7.5}
    assert side.did == [("load", "somewhere")]
    with pytest.raises(ValueError, match="there is no checkpoint to open"):
        FakeSide(Settings()).open()


def test_prefill() -> None:
    side = _opened()
    answer = side.prefill(size=6, batch=3)
    ((_, ids),) = side.did
    np.testing.assert_array_equal(ids, random_ids(3, 6, 11))
    assert answer == {"seconds": 5.5, "sparing": False, "tokens": ids[:, -1].tolist()}


def test_decoding_reads_its_context_once_and_does_not_count_it() -> None:
    side = _opened()
    first = side.decode(size=6, batch=2, steps=3)
    assert first["seconds"] == 3 * 2 + 0.5
    assert [name for name, _ in side.did] == ["start", "step", "step", "step"]
    last = random_ids(2, 6, 11)[:, -1]
    np.testing.assert_array_equal(first["tokens"], (last[:, None] + np.arange(4)) % 11)
    side.did.clear()
    assert side.decode(size=6, batch=2, steps=3) == first
    assert side.did[0] == ("rewind", 6)
    assert [name for name, _ in side.did[1:]] == ["step"] * 3


def test_a_cache_has_room_for_what_will_be_asked_and_no_more() -> None:
    side = _opened()
    side.decode(size=6, batch=2, steps=1, capacity=16)
    assert side.new == 17
    side.decode(size=6, batch=2, steps=16)
    assert [name for name, _ in side.did].count("start") == 1
    side.decode(size=7, batch=2, steps=3)
    assert side.new == 4
    side.prefill(size=6, batch=1)
    assert side.new == 1


@pytest.mark.parametrize("between", ["prefill", "lookup", "another context"])
def test_another_text_in_the_cache_is_noticed(between: str) -> None:
    side = _opened()
    first = side.decode(size=6, batch=2, steps=1)
    match between:
        case "prefill":
            side.prefill(size=6, batch=2)
        case "lookup":
            side.lookup(size=6, steps=2)
        case _:
            side.decode(size=5, batch=2, steps=1)
    side.did.clear()
    assert side.decode(size=6, batch=2, steps=1) == first
    assert side.did[0][0] == "start"


def test_a_context_that_failed_is_read_again() -> None:
    side = _opened()
    side.decode(size=6, batch=1, steps=1)

    def fail(ids: object, new: int) -> np.ndarray:
        raise MemoryError

    side.start = fail  # type: ignore[assignment, method-assign]
    with pytest.raises(MemoryError):
        side.decode(size=7, batch=1, steps=1)
    del side.start
    side.did.clear()
    side.decode(size=7, batch=1, steps=1)
    assert side.did[0][0] == "start"


def test_prompt_lookup_repeats_its_prompt_and_is_timed_after_the_first_token() -> None:
    side = _opened()
    side.vocab_size = 50
    answer = side.lookup(size=3 * PATTERN + 5, steps=4)
    ((_, ids),) = side.did
    assert ids.shape == (1, 53)
    pattern = ids[0, :PATTERN].tolist()
    assert len(set(pattern)) == PATTERN
    np.testing.assert_array_equal(ids[0, PATTERN:-1], ids[0, : -PATTERN - 1])
    assert ids[0, -1] not in pattern, "what follows it could be guessed before the first token"
    assert answer == {"seconds": 2 * 2 + 0.5, "passes": 2, "tokens": [pattern[:5]]}


def test_a_text_that_does_not_repeat_itself_is_no_prompt_lookup(monkeypatch: pytest.MonkeyPatch) -> None:
    side = _opened()
    right = side.by_lookup
    monkeypatch.setattr(side, "by_lookup", lambda *given: right(*given)[:, ::-1])
    with pytest.raises(ValueError, match="the text is not what the bias forces"):
        side.lookup(size=9, steps=4)


def test_a_guess_before_the_first_token_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    side = _opened()
    monkeypatch.setattr(Arrivals, "put", lambda self, value: (self.times.append(0.0), self.counts.append(2)))
    with pytest.raises(ValueError, match="2 tokens came first and not one"):
        side.lookup(size=9, steps=4)


@pytest.mark.parametrize(("size", "vocab_size"), [(2, 7), (3, 7), (50, 5)])
def test_a_small_vocabulary_repeats_itself_too(size: int, vocab_size: int) -> None:
    prompt, text = repetition(size, 9, vocab_size)
    assert prompt.shape == (1, size)
    assert prompt[0, -1] not in prompt[0, :-1]
    assert text.shape == (9,)
    assert set(text) <= set(prompt[0, :-1])


def test_an_edit_says_most_of_its_prompt_again() -> None:
    prompt, text = edited(256, 129, 50_000)
    assert prompt.shape == (1, 256)
    assert prompt[0, -1] not in [*prompt[0, :-1], *text], "what follows it could be guessed before the first token"
    changed = prompt[0, :129] != text
    assert changed.sum() == 14
    for before in set(prompt[0, :129][changed].tolist()):  # a name changes everywhere, always into the same
        assert len(set(text[prompt[0, :129] == before].tolist())) == 1


@pytest.mark.parametrize("make", [repetition, edited])
@pytest.mark.parametrize(("size", "new", "vocab_size"), [(256, 129, 128_256), (256, 129, 256), (9, 40, 1000)])
def test_what_is_forced_settles_every_token(make: Any, size: int, new: int, vocab_size: int) -> None:
    prompt, text = make(size, new, vocab_size)
    bias, said = forcing(prompt[0], text), [*prompt[0], *text]
    for place in range(size, size + new):
        wanted = {after for *before, after in bias if said[place - len(before) : place] == before}
        assert wanted == {said[place]}


def test_an_edit_is_made_of_its_prompt() -> None:
    side = _opened()
    side.vocab_size = 1000
    answer = side.lookup(size=50, steps=30, edit=True)
    ((_, ids),) = side.did
    prompt, text = edited(50, 31, 1000)
    np.testing.assert_array_equal(ids, prompt)
    assert answer == {"seconds": 15 * 2 + 0.5, "passes": 15, "tokens": [text.tolist()]}


def test_memory_is_that_of_opening_reading_and_decoding() -> None:
    side = FakeSide()
    answer = side.memory(size=6, batch=1, steps=2)
    assert [name for name, _ in side.did] == ["load", "start", "step", "step"]
    assert answer["bytes"] > 1_000_000
    assert len(answer["tokens"][0]) == 3


def test_training_makes_its_step_once() -> None:
    side = FakeSide()
    for _ in range(2):
        assert side.train("there", batch=2, context=5, vocab_size=17) == {"seconds": 3.5, "loss": 1.5}
    ((_, folder, ids),) = side.did
    assert folder == "there"
    np.testing.assert_array_equal(ids, random_ids(2, 5, 17))


def test_ids_are_the_same_everywhere_and_differ_by_shape() -> None:
    np.testing.assert_array_equal(random_ids(2, 7, 50), random_ids(2, 7, 50))
    ids = random_ids(3, 1000, 50)
    assert ids.dtype == np.int64
    assert set(ids.ravel().tolist()) == set(range(50))
    assert (random_ids(1, 7, 50) != random_ids(2, 7, 50)[0]).any()
