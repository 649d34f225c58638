"""Flags: ranges, messages, help."""

from __future__ import annotations

import argparse
import re

import pytest

import refdiff
from refdiff.cli import main
from refdiff.cli.options import build_parser


def _commands(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    return dict(next(a for a in parser._actions if isinstance(a, argparse._SubParsersAction)).choices)


@pytest.mark.parametrize("command", [[], *([name] for name in _commands(build_parser()))], ids=" ".join)
def test_help_opens_with_examples_and_fits_80_columns(
    command: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit, match="0"):
        main([*command, "--help"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "examples:"
    examples = lines[1 : lines.index("")]
    assert len(examples) >= 2
    assert all(line.startswith("  refdiff ") for line in examples)
    assert max(map(len, lines)) < 80


@pytest.mark.parametrize("command", ["generate", "inspect", "convert", "attention", "bench"])
def test_every_flag_says_its_default_or_that_it_has_none(command: str) -> None:
    subcommands = next(a for a in build_parser()._actions if isinstance(a, argparse._SubParsersAction))
    actions = [a for a in subcommands.choices[command]._actions if a.dest != "help" and a.option_strings]
    assert len(actions) >= 3
    for action in actions:
        assert ("(required)" if action.required else "(default: ") in str(action.help), action.option_strings


def test_the_examples_of_the_help_parse() -> None:
    parser = build_parser()
    texts = [parser.format_help(), *(c.format_help() for c in _commands(parser).values())]
    examples = [line.strip() for text in texts for line in text.partition("\n\n")[0].splitlines()[1:]]
    assert len(examples) >= 2 * (1 + len(_commands(parser)))
    for example in examples:
        words = [word.strip('"') for word in re.findall(r'"[^"]*"|\S+', example)]
        assert words[0] == "refdiff"
        parser.parse_args(words[1:])


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["--version"])
    assert capsys.readouterr().out == f"refdiff {refdiff.__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], "the following arguments are required: COMMAND"),
        (["translate"], "invalid choice: 'translate'"),
        (
            ["generate", "--top-p", "1.5", "x"],
            "argument --top-p: 1.5 is out of range; give a number above 0 to 1 (1 = off)",
        ),
        (
            ["generate", "--top-p", "0", "x"],
            "argument --top-p: 0 is out of range; give a number above 0 to 1 (1 = off)",
        ),
        (["generate", "--top-k", "-1", "x"], "--top-k: -1 is out of range; give a whole number from 0 up (0 = off)"),
        (["generate", "--top-k", "2.5", "x"], "--top-k: '2.5' is not a whole number; give a whole number from 0 up"),
        (["generate", "--temp", "nan", "x"], "--temperature/--temp: nan is out of range; give a number from 0 up"),
        (["generate", "--temp", "inf", "x"], "inf is out of range"),
        (["generate", "-n", "many", "x"], "'many' is not a whole number"),
        (["generate", "--num-beams", "0", "x"], "0 is out of range; give a whole number from 1 up (1 = off)"),
        (["generate", "--repetition-penalty", "0", "x"], "give a number above 0 (1 = off)"),
        (["generate", "--dtype", "int8", "x"], "invalid choice: 'int8'"),
        (["generate", "--max-new", "3"], "unrecognized arguments: --max-new (did you mean --max-new-tokens?)"),
        (
            ["generate", "--temperatur", "1"],
            "refdiff generate: error: unrecognized arguments: --temperatur (did you mean --temperature?); see ",
        ),
        (["generate", "-temp=1", "x"], "unrecognized arguments: -temp=1 (did you mean --temp?)"),
        (["generate", "x", "y", "--qqq"], "unrecognized arguments: y --qqq; see refdiff generate --help"),
        (["inspect"], "the following arguments are required: PATH_OR_REPO"),
    ],
)
def test_wrong_usage_is_one_line_and_status_2(
    arguments: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert expected in err
    assert "--help" in err
