"""How values and names out of a file are shown in messages."""

from __future__ import annotations

import pytest

from refdiff.model import messages


@pytest.mark.parametrize(
    ("value", "name"),
    [(None, "null"), (True, "a boolean"), (1, "an integer"), (1.5, "a number"), ("", "a string"), ([], "a list")],
)
def test_names_of_types(value: object, name: str) -> None:
    assert messages.json_type(value) == name
    assert messages.json_type({}) == "an object"
    assert messages.json_type(b"") == "a bytes"


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
