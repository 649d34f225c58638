"""The flags of `refdiff attention`: what they stand for when they are left out, and what they refuse."""

from __future__ import annotations

import pytest

from refdiff.cli.attention import KINDS
from refdiff.cli.options import build_parser


def test_without_flags_everything_is_a_mean_on_the_cpu() -> None:
    args = build_parser().parse_args(["attention", "x", "-o", "a.html"])
    assert (args.layer, args.pair, args.grid, args.quiet, args.offline) == (None, None, False, False, False)
    assert (args.backend, args.dtype, args.threads) == ("numpy", "auto", 0)


def test_the_help_names_every_kind_of_file(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        build_parser().parse_args(["attention", "--help"])
    shown = capsys.readouterr().out
    assert [kind for kind in KINDS if kind in shown] == list(KINDS)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["x"], "the following arguments are required: -o/--output"),
        (["x", "-o", "a.html", "--layer", "-1"], "--layer: -1 is out of range; give a whole number from 0 up"),
        (["x", "-o", "a.html", "--pair", "1.5"], "--pair: '1.5' is not a whole number"),
    ],
)
def test_wrong_usage(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        build_parser().parse_args(["attention", *arguments])
    assert message in capsys.readouterr().err
