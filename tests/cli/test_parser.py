"""Help and errors as a user at a terminal of 80 columns sees them."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from refdiff.cli.parser import COMMANDS, build_parser
from refdiff.model.variants import VARIANTS

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
        assert len(examples) >= 2, "parser.examples: two command lines at least"
        assert all("refdiff " in line for line in examples)
        assert max(map(len, lines)) <= 80
    assert len(brief) < 40
    assert {line for line in brief if line.startswith("  -")} <= set(full)


@pytest.mark.parametrize("command", COMMANDS)
def test_an_option_takes_one_line_and_ends_with_its_default(command: str, help_of: Help) -> None:
    lines = [*help_of(command, "--help"), ""]
    options = [i for i, line in enumerate(lines) if re.match(r"  -", line)]
    assert options or command == "help"
    for i in options:
        wrapped = re.match(r" {20,}", lines[i + 1])
        assert not wrapped, f"help text too long: shorten it to one line: {lines[i]}"
        assert re.search(r"\((default: .*|required)\)$", lines[i])


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
        ("generate -nmany x", "error: -n: got many, expected a whole number of at least 0"),
        ("generate -m '' x", "error: -m: got nothing, expected a value"),
        ("generate --dtype bfloat x", "; did you mean bfloat16?"),
        ("generate --max-new 3", "unrecognized arguments: --max-new; did you mean --max-new-tokens?"),
        (
            "generate --max-length 5 x",
            "unrecognized arguments: --max-length; did you mean --max-new-tokens, which leaves out the prompt?",
        ),
        ("generate --heads 2 x", "unrecognized arguments: --heads, an option of refdiff train; see"),
        ("inspect -m bundled", "unrecognized arguments: -m; MODEL stands alone: refdiff inspect MODEL; see"),
        ("Once upon a time", 'to continue a text: refdiff generate "Once upon a time"; see'),
        (
            "generate Once upon a time",
            'PROMPT: got 4 words, expected one argument; put quotes around it: "Once upon a time"; see refdiff',
        ),
        ("generate bundled The", "PROMPT: got 2 words, bundled and 'The'; did you mean -m bundled?"),
        ("generate -hello", 'arguments: -hello; a PROMPT that begins with "-" stands after --: refdiff generate -- -h'),
        ("trace bundled -o t.npz one two", 'PROMPT: got 2 words, expected one argument; put quotes around it: "one'),
        ("trace bundled -o t.npz -hello", 'a PROMPT that begins with "-" stands after --: refdiff trace -- -hello'),
        ("trace bundled -o t.npz -- one two", 'PROMPT: got 2 words, expected one argument; put quotes around it: "one'),
        ("trace bundled -o t.npz --bad -- one", "unrecognized arguments: --bad; did you mean --ids?; see"),
        ("trace bundled -o t.npz 'caf\udce9'", "PROMPT: got bytes that are not UTF-8 at character 3, expected UTF-8"),
        ("generate -- -hello -n 2", "unrecognized arguments: -n; options stand before --; see"),
        ("generate 'caf\udce9'", "PROMPT: got bytes that are not UTF-8 at character 3, expected UTF-8 text"),
        ("generate -f -a.txt", "-f: expected one argument; a value that begins with - stands right behind the option"),
        ("completion bash", "did you mean `refdiff --help`?"),
        ("train x", "error: -o/--output: got none; for instance: refdiff train "),
        ("convert", "error: MODEL, OUTPUT, --to: got none; for instance: refdiff convert "),
        ("translate", "COMMAND: got 'translate', expected a command; to continue a text: refdiff generate"),
        (
            "list",
            "got 'list', expected a command; models are folders and repos of the Hugging Face hub, and one is bun",
        ),
        ("pull x", "`refdiff generate -m user/name` downloads what is missing; there is no server; see"),
        ("serve", "there is no server; see"),
        ("trian", "did you mean `refdiff train`?"),
    ],
)
def test_wrong_usage_is_one_line_that_names_what_was_typed(arguments: str, expected: str, cli: Cli) -> None:
    status, out, err = cli(*shlex.split(arguments))
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert expected in err
    assert err.endswith(" -h\n")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("trace bundled -o t.npz text", {"of": "bundled", "prompt": "text"}),
        ("trace -o t.npz bundled --maps text", {"of": "bundled", "prompt": "text", "maps": True}),
        ("golden verify vectors --diagnose outputs", {"folder": "vectors", "outputs": "outputs"}),
        ("golden verify --json vectors outputs", {"folder": "vectors", "outputs": "outputs"}),
        ("golden verify vectors --json -- outputs", {"folder": "vectors", "outputs": "outputs"}),
        ("trace bundled -o t.npz -", {"of": "bundled", "prompt": "-"}),
        ("trace bundled -o t.npz -- -hello", {"of": "bundled", "prompt": "-hello"}),
        ("trace bundled -o t.npz -- --", {"of": "bundled", "prompt": "--"}),
        ("trace -o t.npz --maps -- bundled -o", {"of": "bundled", "prompt": "-o"}),
    ],
)
def test_options_may_stand_between_arguments(words: str, expected: dict[str, Any]) -> None:
    found = vars(build_parser().parse_args(words.split()))
    assert {name: found[name] for name in expected} == expected


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


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("refdiff tr", {"train", "trace"}),
        ("refdiff generate --ba", {"--backend", "--batch-size"}),
        ("refdiff convert a b --to ", {*VARIANTS}),
    ],
)
def test_argcomplete_completes_what_is_typed(typed: str, expected: set[str], environment: dict[str, str]) -> None:
    environment |= {"COMP_LINE": typed, "COMP_POINT": str(len(typed)), "_ARGCOMPLETE": "1", "_ARGCOMPLETE_IFS": "\n"}
    command = ["sh", "-c", f"{sys.executable} -m refdiff 8>&1 9>/dev/null"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert set(done.stdout.splitlines()) == expected, done.stderr
