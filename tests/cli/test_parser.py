"""Help and errors as a user at a terminal of 80 columns sees them."""

from __future__ import annotations

import argparse
import re
import shlex
from collections.abc import Callable

import pytest

from refdiff.cli.flags import Number
from refdiff.cli.parser import COMMANDS, build_parser

from .conftest import Cli

Help = Callable[..., list[str]]


@pytest.fixture(autouse=True)
def _terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")


@pytest.fixture
def help_of(cli: Cli) -> Help:
    """The lines that a command prints."""

    def help_of(*words: str) -> list[str]:
        done = cli(*words)
        assert (done.status, done.err) == (0, "")
        return done.out.splitlines()

    return help_of


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_opens_with_usage_and_examples_and_fits_80_columns(command: str, help_of: Help) -> None:
    brief, full = help_of(*command.split(), "-h"), help_of(*command.split(), "--help")
    assert help_of("help", *command.split()) == full
    assert command or help_of() == brief
    for lines in (brief, full):
        assert lines[0].startswith("usage: refdiff ")
        assert lines[1:3] == ["", "examples:"]
        examples = lines[3 : lines.index("", 3)]
        assert len(examples) >= 2
        assert all("refdiff " in line for line in examples)
        assert max(map(len, lines)) <= 80
    assert len(brief) < 40
    assert {line for line in brief if line.startswith("  -")} <= set(full)


@pytest.mark.parametrize("command", COMMANDS)
def test_an_option_takes_one_line_and_ends_with_its_default(command: str, help_of: Help) -> None:
    lines = [*help_of(command, "--help"), ""]
    options = [i for i, line in enumerate(lines) if re.match(r"  -", line)]
    assert options or command in ("completion", "help")
    for i in options:
        assert re.search(r"\((default: .*|required)\)$", lines[i])
        assert not re.match(r" {20,}", lines[i + 1]), lines[i + 1]


def test_the_examples_of_the_help_parse() -> None:
    parser = build_parser()
    examples = [line for p in (parser, *parser.commands().values()) for line in p.examples.strip().splitlines()]
    assert len(examples) >= 2 * len(COMMANDS)
    for example in examples:
        found = re.search(r"refdiff ([^>)]*)", example)
        assert found
        parser.parse_args([word.strip('"') for word in re.findall(r'"[^"]*"|\S+', found[1])])


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("generate --top-p 1.5 x", "--top-p: got 1.5, expected a number of at least 0 and at most 1 (1 = off)"),
        ("generate --top-k -1 x", "of at least 0 and at most 2147483647 (0 = off)"),
        ("generate --temp nan x", "error: --temp: got nan, expected 0 or a number of at least 1e-06"),
        ("generate -nmany x", "error: -n: got many, expected a whole number of at least 0"),
        ("generate --dtype float8 x", "--dtype: got 'float8', expected one of auto, float32, float64,"),
        ("generate --dtype bfloat x", "; did you mean bfloat16?"),
        ("generate --max-new 3", "unrecognized arguments: --max-new; did you mean --max-new-tokens?"),
        ("generate --n-predict=3 x", "did you mean --max-new-tokens?"),
        ("generate -temp=1 x", "unrecognized arguments: -temp=1; did you mean --temp?"),
        (
            "generate --max-length 5 x",
            "unrecognized arguments: --max-length; did you mean --max-new-tokens, which leaves out the prompt?",
        ),
        ("generate --heads 2 x", "unrecognized arguments: --heads, an option of refdiff train; see"),
        ("inspect -m bundled", "unrecognized arguments: -m; MODEL stands alone: refdiff inspect MODEL; see"),
        ("Once upon a time", 'to continue a text: refdiff generate "Once upon a time"; see'),
        ("Once upon -n 3", 'to continue a text: refdiff generate "Once upon"; see'),
        ("generate x --qqq", "unrecognized arguments: --qqq; see refdiff generate -h"),
        (
            "generate Once upon a time",
            'PROMPT: got 4 words, expected one argument; put quotes around it: "Once upon a time"; see refdiff',
        ),
        ("generate bundled The", "PROMPT: got 2 words, bundled and 'The'; did you mean -m bundled?"),
        ("generate -hello", 'arguments: -hello; a PROMPT that begins with "-" stands after --: refdiff generate -- -h'),
        ("generate -- -hello -n 2", "unrecognized arguments: -n; options stand before --; see"),
        ("generate --version", "unrecognized arguments: --version; did you mean refdiff --version?"),
        ("generate 'caf\udce9'", "PROMPT: got bytes that are not UTF-8 at character 3, expected UTF-8 text"),
        ("train x -o y --prompt '\udce9'", "error: --prompt: got bytes that are not UTF-8 at character 0"),
        ("generate -m '' x", "error: -m: got nothing, expected a folder or a hub repo"),
        ("train x -o y --lr 0", "error: --lr: got 0, expected a number above 0; see refdiff train -h"),
        ("train x", "error: the following arguments are required: -o/--output"),
        ("translate", "COMMAND: got 'translate', expected a command; to continue a text: refdiff generate"),
        ("'train x'", 'to continue a text: refdiff generate "train x"'),
        ("trian", "did you mean `refdiff train`?"),
        ("benchmark", "did you mean `refdiff bench`?"),
        ("--lr 3 train", "--lr: options stand after the command: refdiff COMMAND --lr"),
    ],
)
def test_wrong_usage_is_one_line_that_names_what_was_typed(arguments: str, expected: str, cli: Cli) -> None:
    status, out, err = cli(*shlex.split(arguments))
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert expected in err
    assert err.endswith(" -h\n")


@pytest.mark.parametrize(
    "arguments",
    [
        "generate --f\x1b[31m x", "generate Once up\x1b]0;on\x07", "generate --top-k \x1b[31m x",
        "generate -n\x1b[31m x", "--f\x1b[31m generate", "gen\x1b[31m", "generate --\u202e x",
        "generate --\udce9 x",
    ],
)  # fmt: skip
def test_errors_escape_what_was_typed(arguments: str, cli: Cli) -> None:
    done = cli(*arguments.split(" "))
    assert done.status == 2
    assert done.err[:-1].isprintable()
    assert re.search(r"\\(x1b|x9b|u202e|udce9)", done.err)


def test_older_spellings_are_accepted_and_documented(help_of: Help) -> None:
    old = ["--steps", "7", "--batch", "3", "--rate", "0.5", "--warmup", "2", "--decay", "0", "--clip", "3"]
    new = ["--max-steps", "7", "--batch-size", "3", "--lr", "0.5", "--warmup-steps", "2", "--weight-decay", "0"]
    new += ["--grad-clip", "3"]
    one, other = (vars(build_parser().parse_args(["train", "x", "-o", "y", *words])) for words in (old, new))
    del one["given"], other["given"]
    assert one == other
    said = " ".join(" ".join(help_of("train", "--help")).split())
    for word in (*old[::2], "--inner-size"):
        assert f"{word} = --" in said


def test_the_help_names_the_environment_that_sets_the_model(help_of: Help, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("REFDIFF_MODEL", raising=False)
    assert "folder or hub repo (default: bundled)" in "\n".join(help_of("generate", "-h"))
    monkeypatch.setenv("REFDIFF_MODEL", "a/folder of\x1b[31m 100%s")
    assert "folder or hub repo (default: $REFDIFF_MODEL)" in "\n".join(help_of("generate", "-h"))


@pytest.mark.parametrize("value", [True, "3", None, 2.5, [1], float("inf"), float("nan")])
def test_a_field_of_another_kind_is_refused(value: object) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match=r"got .*, expected a whole number of at least 0"):
        Number(int, 0).check(value)


def test_a_number_of_any_length_is_compared() -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="expected a number of at least 0 and at most 1"):
        Number(float, 0, 1).check(10**400)
    with pytest.raises(argparse.ArgumentTypeError, match=r"got 10{36}\.\.\., expected a whole number"):
        Number(int, 0).check(10**400)
    with pytest.raises(argparse.ArgumentTypeError, match=r"at least 0 and at most 9223372036854775807 \(0 = off"):
        Number(int, 0, off="0 = off").check(2**63)
    assert Number(int, 0).check(2**63 - 1) == 2**63 - 1
    assert type(Number(int, 0).check(3.0)) is int
