"""Forms of the file, and what is no prompt."""

from __future__ import annotations

import json
import os
import tracemalloc
from pathlib import Path

import pytest

from refdiff.cli.flags import UsageError
from refdiff.cli.prompts_file.reading import Prompt, Prompts


def read(path: Path, temperature: float | None = None) -> list[Prompt]:
    with Prompts(str(path), temperature) as prompts:
        return list(prompts)


def test_null_is_not_given(tmp_path: Path) -> None:
    path = tmp_path / "prompts"
    path.write_text('{"prompt": null, "text": "a", "temperature": null, "stop": null, "system": null, "id": null}\n')
    assert read(path) == [Prompt(0, "a")]


@pytest.mark.parametrize(
    ("content", "expected"),
    [(b"", "no prompts in it"), (b"\n \n", "no prompts in it"), (b"a\nb\xff\n", "line 2: not UTF-8")],
)
def test_a_wrong_prompts_file_names_its_line(content: bytes, expected: str, tmp_path: Path) -> None:
    path = tmp_path / "prompts"
    path.write_bytes(content)
    with pytest.raises(UsageError) as error:
        read(path)
    assert str(error.value).startswith(str(path))
    assert expected in str(error.value)


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ("plain", "not JSON"),
        ('["b"]', 'got a list, expected an object, {"prompt": "..."}'),
        ('"b"', 'got a string, expected an object, {"prompt": "..."}'),
        ('{"promt": "a"}', 'got no text, expected a field "prompt" (or "text") that is a string'),
        ('{"prompt": 5}', "that is a string"),
        ('{"prompt": "a", "top_p": 7}', "top_p: got 7, expected a number above 0 and at most 1 (1 = off)"),
        ('{"prompt": "a", "max_new_tokens": "7"}', "max_new_tokens: got '7', expected a whole number of at least 0"),
        (
            '{"prompt": "a", "max_tokens": 1000000000000000000000}',
            "max_tokens: got 1000000000000000000000, expected",
        ),
        (
            '{"prompt": "a", "num_beams": 1000000}',
            "num_beams: got 1000000, expected a whole number of at least 1 and at",
        ),
        ('{"prompt": "a", "top_p": NaN}', "not JSON: NaN is not a JSON number"),
        ('{"prompt": "a", "id": Infinity}', "not JSON: Infinity is not a JSON number"),
        ('{"prompt": "a", "id": 1e400}', "not JSON: 1e400 is beyond the largest number, 1.8e308"),
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
        ('{"messages": []}', 'messages: expected a list such as [{"role": "user", "content": "..."}]'),
        ('{"messages": [{"role": "user"}]}', "messages: expected a list such as"),
    ],
)
def test_one_bad_row_costs_no_other(row: str, expected: str, tmp_path: Path) -> None:
    path = tmp_path / "prompts"
    path.write_text(f'{{"prompt": "a"}}\n\n{row}\n{{"prompt": "b"}}\n')
    first, bad, last = read(path)
    assert [first, last] == [Prompt(0, "a"), Prompt(2, "b")]
    assert bad.index == 1
    assert str(bad.problem).startswith(f"{path} line 3: ")
    assert expected in str(bad.problem)


def test_messages_and_max_tokens(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    messages = [{"role": "system", "content": "s"}, {"role": "user", "content": "é"}]
    path.write_text(json.dumps({"messages": messages, "max_tokens": 3}) + "\n")
    (found,) = read(path)
    assert found.messages == messages
    assert json.loads(found.text) == messages
    assert found.options == {"max_new_tokens": 3}


@pytest.mark.parametrize("text", ['[{"prompt": "A fox"}]', '[\n{"prompt": "A fox"}\n]', '[{"prompt": "A fox"},\n'])
def test_a_json_array_is_no_file_of_prompts(text: str, tmp_path: Path) -> None:
    path = tmp_path / "prompts.json"
    path.write_text(text)
    with pytest.raises(
        UsageError, match=r"prompts.json line 1: got a JSON array, expected one object a line, as `jq -c"
    ):
        read(path)


def test_a_line_that_looks_like_json_but_is_no_object_is_text(tmp_path: Path) -> None:
    path = tmp_path / "prompts"
    path.write_bytes(b"\xef\xbb\xbf[1, 2]\r\n{not json\r\n")
    assert read(path) == [Prompt(0, "[1, 2]"), Prompt(1, "{not json")]
    path.write_text("[" * 100_000)
    assert read(path) == [Prompt(0, "[" * 100_000)]


@pytest.mark.parametrize(
    ("row", "temperature", "expected"),
    [
        (
            {"temperature": 0, "top_k": 5},
            None,
            "top_k: no effect with temperature 0, which takes the most probable token",
        ),
        ({"temperature": 0, "top_p": 0.5, "min_p": 0.1}, 0.7, "top_p, min_p: no effect with temperature 0, which"),
        (
            {"top_k": 5},
            0,
            "top_k: no effect with --temperature 0, which takes the most probable token; give this prompt a",
        ),
        ({"temperature": 0.5, "top_k": 5}, 0, ""),
        ({"top_k": 5}, 0.5, ""),
        ({"top_k": 5}, None, ""),
        ({"temperature": 0}, 0.5, ""),
    ],
)
def test_a_filter_that_does_nothing_is_refused_as_the_flag_is(
    row: dict[str, float], temperature: float | None, expected: str, tmp_path: Path
) -> None:
    path = tmp_path / "prompts"
    path.write_text(json.dumps({"prompt": "ab"}) + "\n" + json.dumps({"prompt": "ab", **row}) + "\n")
    if not expected:
        assert read(path, temperature)[1].options == row
        return
    assert str(read(path, temperature)[1].problem).startswith(f"{path} line 2: {expected}")


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
