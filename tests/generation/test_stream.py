"""Streamed text is the text: whole characters, no half ones, for one prompt, batches and other threads."""

from __future__ import annotations

import queue
import random
import threading
from typing import Any, ClassVar

import numpy as np
import pytest

import refdiff
from refdiff.generation import generate
from refdiff.generation.stream import BatchTextStreamer, PieceDecoder, TextIteratorStreamer, TextStreamer
from tests.generation.fakes import FakeModel, letters
from tests.generation.trained_tokenizers import KINDS, TEXTS


def pieces(tokenizer: Any, ids: list[int], **options: Any) -> list[str]:
    decoder = PieceDecoder(tokenizer, **options)
    return [*map(decoder, ids), decoder.end()]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("skip", [False, True])
def test_whole_texts(kind: str, skip: bool) -> None:
    """Piece by piece the same as at once, and no piece holds half a character."""
    tokenizer = KINDS[kind]()
    for text in [*TEXTS, "".join(TEXTS)]:
        ids = tokenizer.encode(text).ids
        got = pieces(tokenizer, ids, skip_special_tokens=skip)
        assert "".join(got) == tokenizer.decode(ids, skip_special_tokens=skip)
        assert not any("\ufffd" in piece for piece in got)
        assert sum(map(bool, got)) > len(text) / 12


@pytest.mark.parametrize("kind", KINDS)
def test_texts_that_end_anywhere(kind: str) -> None:
    """An incomplete character at the end is left out, and nothing else is; a streamer has U+FFFD for it."""
    tokenizer = KINDS[kind]()
    text = "".join(TEXTS)
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    whole = tokenizer.decode(ids)
    incomplete = 0
    for end in range(1, len(ids)):
        got = "".join(pieces(tokenizer, ids[:end]))
        at_once = tokenizer.decode(ids[:end])
        assert whole.startswith(got)
        incomplete += at_once != got
        streamer = BatchTextStreamer(tokenizer)
        for token in ids[:end]:
            streamer.put([token])
        streamer.end()
        if kind == "byte_fallback":
            assert streamer.texts[0].rstrip("\ufffd") == got
        else:
            assert streamer.texts == [at_once]
        assert got == at_once or at_once.endswith("\ufffd")
        if kind == "byte_level":  # a byte-fallback decoder gives up on the whole run of bytes
            assert got == at_once.rstrip("\ufffd")
    assert incomplete > 20 or kind == "unigram"


@pytest.mark.parametrize("kind", KINDS)
def test_any_ids_at_all(kind: str) -> None:
    """Ids that form no characters: the stream neither fails nor loses what is whole."""
    tokenizer = KINDS[kind]()
    rng = random.Random(0)
    for _ in range(200):
        ids = [rng.randrange(tokenizer.get_vocab_size()) for _ in range(rng.randrange(1, 30))]
        got = "".join(pieces(tokenizer, ids))
        if kind != "byte_fallback":
            assert got == tokenizer.decode(ids, skip_special_tokens=False).rstrip("\ufffd")
        rest = iter(got)
        for token in ids:
            if not (spelled := tokenizer.id_to_token(token)).startswith("<0x") and spelled.isascii():
                assert all(character in rest for character in spelled)  # in this order


def test_a_wrong_byte_after_a_whole_character() -> None:
    """The decoder would take the character back; it stays, the byte is marked, the words after it keep their space."""
    tokenizer = KINDS["byte_fallback"]()
    cat, fox = (tokenizer.encode(text, add_special_tokens=False).ids for text in ("猫", "a fox"))
    cat = [token for token in cat if tokenizer.id_to_token(token).startswith("<0x")]
    assert len(cat) == 3
    got = pieces(tokenizer, [*cat, cat[0], tokenizer.token_to_id("q"), *fox])
    assert "".join(got) == "猫\ufffdq a fox"


@pytest.mark.parametrize("kind", KINDS)
def test_text_before_the_stream_is_not_repeated_but_decoded_with_it(kind: str) -> None:
    """Prompt and text joined are the whole: the space between them, and a character across the border."""
    tokenizer = KINDS[kind]()
    for text in TEXTS[:5]:
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        for border in range(1, len(ids)):
            before, after = ids[:border], ids[border:]
            got = "".join(pieces(tokenizer, after, before=np.array(before)))
            assert "".join(pieces(tokenizer, before)) + got == tokenizer.decode(ids)


# ---- with generate


MODEL = FakeModel(0, V=26, scale=0.5, eos_token_id=2, pad_token_id=0)
WAYS: list[dict[str, Any]] = [
    {}, {"do_sample": True, "seed": 1}, {"num_beams": 3}, {"num_beams": 2, "num_return_sequences": 2},
    {"do_sample": True, "seed": 1, "num_return_sequences": 2},
]  # fmt: skip
SINGLE: list[dict[str, Any]] = [
    {"prompt_lookup_num_tokens": 4},
    {"prompt_lookup_num_tokens": 4, "do_sample": True, "seed": 2},
    {"assistant_model": FakeModel(3, V=26)},
]


def text_of(ids: np.ndarray) -> str:
    return str(letters().decode(ids.tolist()))


@pytest.mark.parametrize("prompts", [[[5, 6, 7]], [[5, 6, 7], [8, 9, 10], [5, 6, 7]]], ids=["one", "three"])
@pytest.mark.parametrize("options", WAYS, ids=str)
@pytest.mark.parametrize("skip_prompt", [False, True])
def test_streamed_text_matches_every_decoding_strategy(
    prompts: Any, options: dict[str, Any], skip_prompt: bool
) -> None:
    got: dict[int, str] = {}
    streamer = BatchTextStreamer(
        letters(), lambda row, text: got.update({row: got.get(row, "") + text}), skip_prompt=skip_prompt
    )
    ids = generate(MODEL, prompts, streamer=streamer, max_new_tokens=15, **options)
    want = [text_of(row[3 * skip_prompt :]) for row in ids]
    assert streamer.texts == want == [got[row] for row in range(len(ids))]
    again = generate(MODEL, prompts, max_new_tokens=15, **options)
    np.testing.assert_array_equal(again, ids)


def test_printing(capsys: pytest.CaptureFixture[str]) -> None:
    ids = generate(MODEL, [[5, 6, 7]], streamer=TextStreamer(letters()), max_new_tokens=5)
    assert capsys.readouterr().out == text_of(ids[0]) + "\n"
    assert TextStreamer(letters()).text == ""


def test_transformers_own_protocol() -> None:
    """One prompt: the prompt as (1, T), then one id at a time as (1,), then the end."""
    seen: list[Any] = []

    class Theirs:
        def put(self, value: Any) -> None:
            seen.append(value.shape)

        def end(self) -> None:
            seen.append("end")

    generate(MODEL, [[5, 6, 7]], streamer=Theirs(), max_new_tokens=3, eos_token_id=None)
    assert seen == [(1, 3), (1,), (1,), (1,), "end"]


def test_a_subclass_may_receive_the_text_as_in_transformers() -> None:
    class Shouting(TextStreamer):
        said: ClassVar[list[tuple[str, bool]]] = []

        def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
            self.said.append((text.upper(), stream_end))

    streamer = Shouting(letters(), skip_prompt=True, clean_up_tokenization_spaces=False)
    ids = generate(MODEL, [[5, 6, 7]], streamer=streamer, max_new_tokens=4, eos_token_id=None)
    assert streamer.said == [*((letter.upper(), False) for letter in text_of(ids[0, 3:])), ("", True)]


def test_a_batch_is_refused_by_the_streamer_of_one() -> None:
    with pytest.raises(ValueError, match="got 2 sequences, expected one prompt; use BatchTextStreamer"):
        generate(MODEL, [[5, 6], [7, 8]], streamer=TextStreamer(letters()))
    streamer = BatchTextStreamer(letters())
    streamer.put(np.array([[1], [2]]))
    with pytest.raises(ValueError, match="put: got ids of 3 sequences, expected 2 as before"):
        streamer.put(np.array([1, 2, 3]))


def test_another_thread() -> None:
    streamer = TextIteratorStreamer(letters(), skip_prompt=True, timeout=20)
    options: dict[str, Any] = {"streamer": streamer, "max_new_tokens": 12, "eos_token_id": None}
    thread = threading.Thread(target=generate, args=(MODEL, [[5, 6, 7]]), kwargs=options)
    thread.start()
    got = list(streamer)
    thread.join()
    assert "".join(got) == text_of(generate(MODEL, [[5, 6, 7]], max_new_tokens=12, eos_token_id=None)[0, 3:])
    assert len(got) == 12


def test_another_thread_does_not_hang_when_generate_fails() -> None:
    with pytest.raises(queue.Empty):
        next(TextIteratorStreamer(letters(), timeout=0.01))
    streamer = TextIteratorStreamer(letters(), timeout=20)
    with pytest.raises(IndexError, match="got token id 99"):
        generate(MODEL, [[5, 99]], streamer=streamer)
    assert list(streamer) == []
    with pytest.raises(TypeError, match="unknown option"):
        generate(MODEL, [[5]], streamer=streamer, nonsense=1)
    assert list(streamer) == []
    model = FakeModel()
    model.W[3] = np.nan
    with pytest.raises(ValueError, match="NaN"):
        generate(model, [[5, 6]], streamer=streamer)
    assert "".join(streamer) == "fg"


@pytest.mark.parametrize("options", [*WAYS, *SINGLE], ids=str)
def test_ctrl_c_keeps_what_came_so_far(options: dict[str, Any]) -> None:
    class Interrupted(FakeModel):
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            if len(self.calls) == 4:
                raise KeyboardInterrupt
            return super().__call__(*args, **kwargs)

    streamer = BatchTextStreamer(letters())
    prompt = [[5, 6, 7, 5, 6]]
    whole = generate(MODEL, prompt, max_new_tokens=15, eos_token_id=None, **options)
    with pytest.raises(KeyboardInterrupt):
        generate(
            Interrupted(0, V=26, scale=0.5), prompt, streamer=streamer, max_new_tokens=15, eos_token_id=None, **options
        )
    assert len(streamer.texts) == len(whole)
    for row, text in zip(whole, streamer.texts, strict=True):
        assert text_of(row).startswith(text)
        assert len(text) >= (5 if "num_beams" in options else 7)


@pytest.mark.parametrize("kind", list(KINDS))
def test_a_space_that_was_shown_is_not_cleaned_up(kind: str) -> None:
    tokenizer = refdiff.Tokenizer(KINDS[kind](), {"clean_up_tokenization_spaces": True})
    ids = tokenizer("do n't , it 's fine ?", add_special_tokens=False)["input_ids"]
    streamer = BatchTextStreamer(tokenizer)
    streamer.put([ids])
    streamer.end()
    assert streamer.texts == [tokenizer.decode(ids, clean_up_tokenization_spaces=False)]
    assert (tokenizer.decode(ids) == streamer.texts[0]) == (kind != "unigram")
