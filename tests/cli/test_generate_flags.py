"""The flags that a line of a prompts file can set too."""

from __future__ import annotations

from refdiff.cli.generate_flags import NUMBERS
from refdiff.cli.options import build_parser


def test_every_number_says_what_turns_it_off() -> None:
    for name, number in NUMBERS.items():
        assert number.off or name == "seed", name


def test_every_number_is_a_flag() -> None:
    args = build_parser().parse_args(["generate", "x"])
    assert set(NUMBERS) <= set(vars(args))
    assert not [name for name in NUMBERS if getattr(args, name) is not None]
