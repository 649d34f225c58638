"""Help and errors as a user at a terminal of 80 columns sees them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable

import pytest

import refdiff
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
    options = 0
    for i, line in enumerate(lines):
        if not re.match(r"  -", line):
            continue
        options += 1
        assert not re.match(r" {20,}", lines[i + 1]), lines[i + 1]
        required = re.search(r"--(prompt|file|chat|output|ids) ", line) or "REF" in line
        assert line.endswith(("(required)", ")")) or required, line
        assert "(default: " in line or "(required)" in line or required, line
    assert options or command in ("completion", "help")


def test_refdiff_alone_prints_the_short_help(help_of: Help) -> None:
    assert help_of() == help_of("-h")


def test_the_examples_of_the_help_parse() -> None:
    parser = build_parser()
    examples = [line for p in (parser, *parser.commands().values()) for line in p.examples.strip().splitlines()]
    assert len(examples) >= 2 * len(COMMANDS)
    for example in examples:
        found = re.search(r"refdiff ([^>)]*)", example)
        assert found
        parser.parse_args([word.strip('"') for word in re.findall(r'"[^"]*"|\S+', found[1])])


def test_version(help_of: Help) -> None:
    assert help_of("--version") == [f"refdiff {refdiff.__version__}"]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("generate --top-p 1.5 x", "--top-p: got 1.5, expected a number above 0 and at most 1 (1 = off)"),
        ("generate --top-p 0 x", "--top-p: got 0, expected a number above 0 and at most 1 (1 = off)"),
        ("generate --top-k -1 x", "of at least 0 and at most 2147483647 (0 = off)"),
        ("generate --top-k=2.5 x", "--top-k: got 2.5, expected a whole number of at least 0"),
        ("generate --temp nan x", "error: --temp: got nan, expected 0 or a number of at least 1e-06"),
        ("generate --temperature inf x", "error: --temperature: got inf, expected"),
        ("generate -nmany x", "error: -n: got many, expected a whole number of at least 0"),
        ("generate --max-new-tokens -3 x", "error: --max-new-tokens: got -3"),
        ("generate --num-beams 0 x", "got 0, expected a whole number of at least 1 and at most 1000"),
        (
            "generate -s 1000000000000000000000000000000000000000000000000000000000000 x",
            "-s: got 1000000000000000000000000000000000000..., expected a whole",
        ),
        ("generate --dtype float8 x", "--dtype: got 'float8', expected one of auto, float32, float64,"),
        ("generate --dtype bfloat x", "; did you mean bfloat16?"),
        ("generate --max-new 3", "unrecognized arguments: --max-new; did you mean --max-new-tokens?"),
        ("generate --max_new_tokens 3", "did you mean --max-new-tokens?"),
        ("generate --n-predict=3 x", "did you mean --max-new-tokens?"),
        ("generate --device cuda x", "did you mean --backend?"),
        ("generate -temp=1 x", "unrecognized arguments: -temp=1; did you mean --temp?"),
        (
            "generate --max-length 5 x",
            "unrecognized arguments: --max-length; did you mean --max-new-tokens, which leaves out the prompt?",
        ),
        ("generate --max-length 5 x y", "unrecognized arguments: --max-length; did you mean"),
        ("generate --heads 2 x", "unrecognized arguments: --heads, an option of refdiff train; see"),
        ("generate --steps 2 x", "unrecognized arguments: --steps, an option of refdiff train; see"),
        ("train x -o y --rows 2", "unrecognized arguments: --rows, an option of refdiff bench; see"),
        ("inspect -m bundled", "unrecognized arguments: -m; MODEL stands alone: refdiff inspect MODEL; see"),
        ("convert --model a b --to v2", "--model; MODEL stands alone: refdiff convert MODEL OUTPUT"),
        ("Once", 'to continue a text: refdiff generate "Once"; see refdiff -h'),
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
        ("generate -V", "unrecognized arguments: -V; did you mean refdiff --version?"),
        ("-v", "did you mean refdiff --version?"),
        ("generate 'caf\udce9'", "PROMPT: got bytes that are not UTF-8 at character 3, expected UTF-8 text"),
        ("generate -p '\udce9'", "error: -p: got bytes that are not UTF-8 at character 0, expected UTF-8 text"),
        ("train x -o y --prompt '\udce9'", "error: --prompt: got bytes that are not UTF-8 at character 0"),
        ("trace bundled '\udce9' -o x.npz", "PROMPT: got bytes that are not UTF-8"),
        ("generate -m '' x", "error: -m: got nothing, expected a folder or a hub repo"),
        ("attention -o x.html Once upon", 'put quotes around it: "Once upon"'),
        ("train x -o y --lr 0", "error: --lr: got 0, expected a number above 0; see refdiff train -h"),
        ("train x -o y --rate 0", "error: --rate: got 0, expected a number above 0"),
        ("train x -o y --epochs 1", "unrecognized arguments: --epochs; did you mean --max-steps?"),
        ("train x", "error: the following arguments are required: -o/--output"),
        ("translate", "COMMAND: got 'translate', expected a command; to continue a text: refdiff generate"),
        ("trian", "did you mean `refdiff train`?"),
        ("run", "did you mean `refdiff generate`?"),
        ("benchmark", "did you mean `refdiff bench`?"),
        ("gen", "did you mean `refdiff generate`?"),
        ("version", "did you mean `refdiff --version`?"),
        ("generate x --greedy", "did you mean --temperature?"),
        ("train x -o y --bs 4", "did you mean --batch-size?"),
        ("--lr 3 train", "--lr: options stand after the command: refdiff COMMAND --lr"),
        ("'Once upon a time'", 'to continue a text: refdiff generate "Once upon a time"'),
        ("check mine.npz --layer one", "--layer: got one, expected a whole number of at least 0"),
        ("check mine.npz --seeds 0", "--seeds: got 0, expected a whole number of at least 1"),
        ("attention x -o a.html --pair 1.5", "--pair: got 1.5, expected a whole number"),
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
        "generate --f\x1b[31m x", "generate --f\x1b[31m=3 x", "generate Once up\x1b]0;on\x07",
        "generate --top-k \x1b[31m x",
        "generate -n\x1b[31m x", "generate --dtype \x9b31m x", "--f\x1b[31m generate", "gen\x1b[31m",
        "generate --\u202e x",
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


@pytest.mark.parametrize("command", ["generate", "inspect"])
def test_the_help_names_the_environment_that_sets_the_model(
    command: str, help_of: Help, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("REFDIFF_MODEL", raising=False)
    assert "folder or hub repo (default: bundled)" in "\n".join(help_of(command, "--help"))
    monkeypatch.setenv("REFDIFF_MODEL", "a/folder of\x1b[31m 100%s")
    said = "\n".join(help_of(command, "--help"))
    assert "folder or hub repo (default: $REFDIFF_MODEL)" in said
    assert "(default: bundled)" not in said
