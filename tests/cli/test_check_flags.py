"""Flags of `refdiff check`."""

from __future__ import annotations

import pytest

from refdiff.cli import main
from refdiff.cli.options import build_parser


def test_defaults() -> None:
    args = build_parser().parse_args(["check", "mine.npz"])
    assert (args.file, args.spec, args.layer, args.recipe) == ("mine.npz", "hf_diffllama", None, "auto")
    assert (args.selftest, args.seeds, args.json, args.diagnose, args.debug) == (False, 1, False, False, False)
    assert (args.set, args.inputs, args.print_spec) == ([], False, False)
    assert build_parser().parse_args(["check", "--set", "a=1", "--set", "b=2"]).set == ["a=1", "b=2"]


@pytest.mark.parametrize("words", [["--layer", "-1"], ["--seeds", "0"], ["--layer", "one"]])
def test_numbers_out_of_range(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["check", "mine.npz", *words])
    assert words[0] in capsys.readouterr().err
