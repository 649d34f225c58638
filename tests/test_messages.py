"""How values and names out of a file are shown in messages."""

from __future__ import annotations

import pytest

from refdiff import messages
from refdiff.errors import CheckpointError


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("head_dim", "head_dim"),
        ("a b", "'a b'"),
        ("\x1b[31m", r"'\x1b[31m'"),
        ("日", r"'\u65e5'"),
        ("x" * 80, "x" * 80),
        ("x" * 81, f"'{'x' * 80}'"),
        ("x" * 99, f"'{'x' * 80}'"),
    ],
)
def test_names_in_messages_cannot_drive_a_terminal(name: str, shown: str) -> None:
    assert messages.show_name(name) == shown


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (5, "5"),
        (True, "True"),
        (10**40, f"1{'0' * 40}"),
        (-(10**40), f"-1{'0' * 40}"),
        (10**40 + 1, "an integer above 10^40"),
        (-(10**40) - 1, "an integer below -10^40"),
        (10**5000, "an integer above 10^40"),
        (-(10**5000), "an integer below -10^40"),
        ([10**5000], "a list with an integer of thousands of digits"),
        ("x" * 100, f"'{'x' * 76}..."),
        ("x" * 78, f"'{'x' * 78}'"),
        ("x" * 79, f"'{'x' * 76}..."),
        ("日\n\x1b", r"'\u65e5\n\x1b'"),
    ],
    ids=range(13),
)
def test_values_in_messages_are_short(value: object, shown: str) -> None:
    assert messages.show_value(value) == shown


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Ü 日本 \t\n", "Ü 日本 \t\n"),
        ("\x1b[31mred\x1b[0m", r"\x1b[31mred\x1b[0m"),
        ("\u202egnp.exe", r"\u202egnp.exe"),
        ("\udc80", r"\udc80"),
        ("\r\b\x9b", r"\r\x08\x9b"),
        ("\U000e0001", r"\U000e0001"),
    ],
    ids=range(6),
)
def test_a_message_cannot_drive_a_terminal(text: str, shown: str) -> None:
    assert messages.printable(text) == shown
    assert str(CheckpointError(text)) == shown


def test_the_nearest_known_name_is_asked_for() -> None:
    known = ("prefill", "decode", "decoder")
    assert messages.did_you_mean("decod", known) == "; did you mean 'decode'?"
    assert messages.did_you_mean("decod", known, " (", show=str, most=2) == " (did you mean decode, decoder?"
    assert messages.did_you_mean("decod", known, ", ", ":", cutoff=0.95) == ":"
    assert messages.did_you_mean(None, known) == ""


@pytest.mark.parametrize("letter", ["x", "\x1b"])
def test_a_message_is_short_and_keeps_its_end(letter: str) -> None:
    for text in (letter * 10**6 + "; the fix", letter * 3000 + "; the fix"):
        shown = str(CheckpointError(f"file: {text}"))
        assert len(shown) <= messages.MAX_MESSAGE
        assert shown.startswith("file: ")
        assert shown.endswith("; the fix")
    assert messages.printable("x" * 2000) == "x" * 2000


@pytest.mark.parametrize(("count", "length"), [(3, 40), (20, 60), (56, 130), (56, 1400), (5000, 10)])
def test_a_long_list_of_problems_ends_between_two_problems(count: int, length: int) -> None:
    problems = [f"model.layers.{i}.".ljust(length, "x") for i in range(count)]
    head, *lines = messages.printable(messages.list_problems(problems)).splitlines()
    assert head == f"{count} problems:"
    whole = [line.strip() for line in lines if line.strip() in problems]
    assert whole == problems[: len(whole)]
    assert whole
    rest = [f"  and {count - len(whole)} more"] if len(whole) < count else []
    assert lines[len(whole) :] == rest
