"""Forms of the file, and what is no prompt."""

from __future__ import annotations

import json
import os
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest

from refdiff.cli.flags import UsageError
from refdiff.cli.prompts_file.reading import Prompt, Prompts

Read = Callable[..., list[Prompt]]


@pytest.fixture
def read(here: Path) -> Read:
    """Read a text as a file of prompts."""

    def read(content: str | bytes, temperature: float | None = None, name: str = "prompts") -> list[Prompt]:
        (here / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        with Prompts(name, temperature) as prompts:
            return list(prompts)

    return read


def test_null_is_not_given(read: Read) -> None:
    row = '{"prompt": null, "text": "a", "temperature": null, "stop": null, "system": null, "id": null}\n'
    assert read(row) == [Prompt(0, "a")]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "prompts: no prompts in it"),
        (b"a\nb\xff\n", "prompts line 2: not UTF-8"),
        (b'[{"prompt": "A fox"}]', "prompts line 1: got a JSON array, expected one object a line, as `jq -c"),
        (b'[\n{"prompt": "A fox"}\n]', "prompts line 1: got a JSON array"),
    ],
)
def test_a_wrong_prompts_file_names_its_line(content: bytes, expected: str, read: Read) -> None:
    with pytest.raises(UsageError, match=f"^{expected}"):
        read(content)


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ("plain", "not JSON"),
        ('"b"', 'got a string, expected an object, {"prompt": "..."}'),
        ('{"promt": "a"}', 'got no text, expected a field "prompt" (or "text") that is a string'),
        ('{"prompt": "a", "top_p": 7}', "top_p: got 7, expected a number of at least 0 and at most 1 (1 = off)"),
        ('{"prompt": "a", "top_p": NaN}', "not JSON: NaN is not a JSON number"),
        ('{"prompt": "a", "id": [-1e999]}', "not JSON: -1e999 is beyond the largest number"),
        ('{"prompt": "a", "id": ' + "9" * 5000 + "}", "not JSON: an integer of more than 4,300 digits"),
        ('{"prompt": "a", "id": "\\ud800"}', "id: has half a surrogate pair"),
        ('{"prompt": "a", "i\\ud800d": 1}', "'i\\ud800d': has half a surrogate pair"),
        ("[" * 100_000, "not JSON: nested too deeply"),
        ('{"prompt": "a", "max_tokens": "3"}', "max_tokens: got '3', expected"),
        ('{"prompt": "a", "max_tokens": 3, "max_new_tokens": 4}', "got max_tokens and max_new_tokens, expected one of"),
        ('{"prompt": "a", "stop": [""]}', "none empty"),
        ('{"prompt": "a", "stop": 5}', "stop: got 5, expected a string or a list of strings"),
        ('{"prompt": "a", "system": 5}', "system: got 5, expected a string"),
        ('{"prompt": "a", "messages": [{"role": "user", "content": "b"}]}', "got a prompt and messages, expected one"),
        ('{"messages": [{"role": "user"}]}', "messages: expected a list such as"),
    ],
)
def test_one_bad_row_costs_no_other(row: str, expected: str, read: Read) -> None:
    first, bad, last = read(f'{{"prompt": "a"}}\n\n{row}\n{{"prompt": "b"}}\n')
    assert [first, last] == [Prompt(0, "a"), Prompt(2, "b")]
    assert bad.index == 1
    assert str(bad.problem).startswith("prompts line 3: ")
    assert expected in str(bad.problem)


def test_messages_and_max_tokens(read: Read) -> None:
    messages = [{"role": "system", "content": "s"}, {"role": "user", "content": "é"}]
    (found,) = read(json.dumps({"messages": messages, "max_tokens": 3}) + "\n", name="prompts.jsonl")
    assert found.messages == json.loads(found.text) == messages
    assert found.options == {"max_new_tokens": 3}


def test_a_line_that_looks_like_json_but_is_no_object_is_text(read: Read) -> None:
    assert read(b"\xef\xbb\xbf[1, 2]\r\n{not json\r\n") == [Prompt(0, "[1, 2]"), Prompt(1, "{not json")]
    assert read("[" * 100_000) == [Prompt(0, "[" * 100_000)]


@pytest.mark.parametrize(
    ("row", "temperature", "expected"),
    [
        ({"temperature": 0, "top_p": 0.5, "min_p": 0.1}, 0.7, "top_p, min_p: no effect with temperature 0, which"),
        ({"top_k": 5}, 0, "top_k: no effect with --temperature 0, which takes the most probable token; give this prom"),
        ({"temperature": 0.5, "top_k": 5}, 0, ""),
        ({"top_k": 5}, None, ""),
        ({"temperature": 0}, 0.5, ""),
    ],
)
def test_a_filter_that_does_nothing_is_refused_as_the_flag_is(
    row: dict[str, float], temperature: float | None, expected: str, read: Read
) -> None:
    _, found = read('{"prompt": "ab"}\n' + json.dumps({"prompt": "ab", **row}) + "\n", temperature)
    if expected:
        assert str(found.problem).startswith(f"prompts line 2: {expected}")
    else:
        assert found.options == row


def test_a_file_is_gone_through_twice(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text('\n{"prompt": "a", "x": 1, "temperature": 1}\n{"text": "b", "system": "s", "y": 1}\n')
    with Prompts(str(path)) as prompts:
        assert prompts.repeatable
        first = list(prompts)
        assert (
            list(prompts) == first == [Prompt(0, "a", None, {"temperature": 1}), Prompt(1, "b", None, {"system": "s"})]
        )
        assert list(prompts.ignored) == ["x", "y"]
        assert prompts.samples
        assert prompts.has_system


def test_one_line_at_a_time_is_in_memory(tmp_path: Path) -> None:
    path = tmp_path / "prompts"
    path.write_text("".join(f"{i} {'x' * 10_000}\n" for i in range(1_000)))
    with Prompts(str(path)) as prompts:
        tracemalloc.start()
        try:
            assert sum(1 for _ in prompts) == 1_000
            assert tracemalloc.get_traced_memory()[1] < 300_000  # of 10 MB
        finally:
            tracemalloc.stop()


def test_a_pipe_is_read_as_it_comes() -> None:
    reading, writing = os.pipe()
    with Prompts(f"/dev/fd/{reading}") as prompts:
        assert not prompts.repeatable
        found = iter(prompts)
        for i in range(3):
            os.write(writing, f"prompt {i}\n".encode())
            assert next(found) == Prompt(i, f"prompt {i}")
        os.close(writing)
        assert list(found) == []
    os.close(reading)


def test_a_line_without_end_is_refused_in_bounded_memory(tmp_path: Path) -> None:
    (tmp_path / "in.txt").symlink_to("/dev/zero")
    with (
        Prompts(str(tmp_path / "in.txt")) as prompts,
        pytest.raises(UsageError, match=r"line 1: longer than 10,000,000"),
    ):
        next(iter(prompts))
