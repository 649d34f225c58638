"""Forms of the file, and what is no prompt."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from refdiff.cli.flags import UsageError
from refdiff.cli.prompts_file.reading import Prompt, read_prompts

Read = Callable[..., list[Prompt]]


@pytest.fixture
def read(here: Path) -> Read:
    """Read a text as a file of prompts."""

    def read(content: str | bytes) -> list[Prompt]:
        (here / "prompts").write_bytes(content if isinstance(content, bytes) else content.encode())
        return read_prompts("prompts")

    return read


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "prompts: no prompts in it"),
        (b"a\nb\xff\n", "prompts line 2: not UTF-8"),
        (b'[{"prompt": "A fox"}]', "prompts line 1: got a JSON array, expected one object a line, as `jq -c"),
    ],
)
def test_a_wrong_prompts_file_names_its_line(content: bytes, expected: str, read: Read) -> None:
    with pytest.raises(UsageError, match=f"^{expected}"):
        read(content)


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ("plain", "not JSON"),
        ('{"promt": "a"}', 'got no prompt, expected a field "prompt" (or "text") that is a string'),
        ('{"prompt": 3}', 'got an integer as prompt, expected a field "prompt" (or "text") that is a string'),
        ('{"prompt": "a", "seed": -1}', "seed: got -1, expected a whole number of at least 0"),
        ('{"prompt": "a", "top_p": NaN}', "not JSON: NaN is not a JSON number"),
        ('{"prompt": "a", "id": ' + "9" * 5000 + "}", "not JSON: an integer of more than 4,300 digits"),
        ('{"prompt": "a", "id": "\\ud800"}', "has half a surrogate pair"),
        ("[" * 100_000, "not JSON: nested too deeply"),
        ('{"prompt": "a", "prompt": "b"}', "not JSON: the key prompt stands twice in one object; keep one of them"),
        ('{"prompt": "a", "max_tokens": 3}', "max_tokens: got a field, expected an option of the command"),
        ('{"prompt": "a", "stop": "x"}', "stop: got a field, expected an option of the command"),
        ('{"prompt": "a", "messages": [{"role": "user", "content": "b"}]}', "got prompt and messages, expected one"),
        ('{"messages": [{"role": "user"}]}', "messages: got [{'role': 'user'}], expected a list such as"),
    ],
)
def test_one_bad_row_costs_no_other(row: str, expected: str, read: Read) -> None:
    first, bad, last = read(f'{{"prompt": "a"}}\n\n{row}\n{{"prompt": "b"}}\n')
    assert [first, last] == [Prompt(0, "a"), Prompt(2, "b")]
    assert bad.index == 1
    assert str(bad.problem).startswith("prompts line 3: ")
    assert expected in str(bad.problem)


def test_a_line_that_looks_like_json_but_is_no_object_is_text(read: Read) -> None:
    assert read(b"\xef\xbb\xbf[1, 2]\r\n{not json\r\n") == [Prompt(0, "[1, 2]"), Prompt(1, "{not json")]
    assert read("[" * 100_000) == [Prompt(0, "[" * 100_000)]


def test_a_line_without_end_is_refused_in_bounded_memory(tmp_path: Path) -> None:
    (tmp_path / "in.txt").symlink_to("/dev/zero")
    with pytest.raises(UsageError, match=r"line 1: longer than 10,000,000"):
        read_prompts(str(tmp_path / "in.txt"))
