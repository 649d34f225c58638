"""The command as a process of its own: pipes, signals, terminals, exit statuses."""

from __future__ import annotations

import json
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.cli.conftest import in_terminal
from tests.quickness import start_seconds

from .conftest import Run

Start = Callable[..., subprocess.Popen[bytes]]
TEXT = "éあ😀!"


@pytest.fixture
def start(environment: dict[str, str], tmp_path: Path) -> Iterator[Start]:
    """Start `refdiff ARGUMENTS` with its output in pipes; what still runs at the end of the test is ended."""
    started: list[subprocess.Popen[bytes]] = []

    def start(*arguments: str | Path, stdout: int = subprocess.PIPE) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "refdiff", *map(str, arguments)]
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=stdout, stderr=subprocess.PIPE, env=environment, cwd=tmp_path,
            bufsize=0,
        )  # fmt: skip
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def _read_until(process: subprocess.Popen[bytes], text: bytes) -> bytes:
    """What the process has written by the time that `text` is in it."""
    assert process.stdout is not None
    seen = b""
    deadline = time.monotonic() + 60
    while text not in seen:
        assert select.select([process.stdout], [], [], max(deadline - time.monotonic(), 0))[0], seen
        piece = os.read(process.stdout.fileno(), 1000)
        assert piece, seen
        seen += piece
    return seen


def test_text_in_any_language_comes_out_whatever_the_locale(
    reciting: Path, environment: dict[str, str], run: Run
) -> None:
    environment.update(LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0")
    done = run("generate", "-m", reciting, "--echo", "-", stdin="日本 h\n".encode())
    assert (done.returncode, done.stdout.decode()) == (0, f"日本 h{TEXT}\n"), done.stderr.decode()


def test_text_is_streamed_into_a_pipe_and_ctrl_c_ends_it_with_130(reciting: Path, start: Start) -> None:
    process = start("generate", "-m", reciting, "-n", "0", "--ignore-eos", "h")
    seen = _read_until(process, (TEXT + "h" + TEXT).encode())
    assert process.poll() is None  # it goes on for 100,000 tokens
    process.send_signal(signal.SIGINT)
    rest, err = process.communicate(timeout=120)
    assert process.returncode == 130
    text = (seen + rest).decode()
    assert text.endswith("\n")
    assert set(text) <= set(f"h{TEXT}\n")
    assert b"finish: interrupted" in err
    assert err.endswith(b"refdiff: interrupted\n")
    assert b"Traceback" not in err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize(
    "arguments", ["bench --like tiny --rows decode:128 --pairs 1000", "judge slow.py"], ids=["bench", "judge"]
)
def test_a_signal_that_ends_a_command_leaves_no_files(
    arguments: str, number: signal.Signals, environment: dict[str, str], tmp_path: Path, start: Start
) -> None:
    (tmp_path / "slow.py").write_text("import time\ntime.sleep(100)\n")
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    environment["TMPDIR"] = str(temporary)
    process = start(*arguments.split())
    deadline = time.monotonic() + 60
    while not any(temporary.glob("*/*")):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert b"Traceback" not in err
    assert not list(temporary.iterdir())


def test_a_closed_pipe_is_silent(reciting: Path, start: Start) -> None:
    process = start("generate", "-m", reciting, "-n", "0", "--ignore-eos", "h")
    _read_until(process, "é".encode())
    assert process.stdout is not None
    process.stdout.close()
    assert process.wait(timeout=30) == 141
    assert process.stderr is not None
    assert process.stderr.read() == b""
    reader, writer = os.pipe()
    os.close(reader)
    process = start("inspect", reciting, stdout=writer)
    os.close(writer)
    _, err = process.communicate(timeout=120)
    assert (process.returncode, err) == (141, b"")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux only")
@pytest.mark.parametrize(
    ("arguments", "command"),
    [("inspect {}", "refdiff inspect"), ("help train", "refdiff help"), ("generate -h", "refdiff generate")],
)
def test_output_that_cannot_be_written_is_one_line_and_status_1(
    arguments: str, command: str, reciting: Path, start: Start
) -> None:
    with Path("/dev/full").open("wb") as full:
        process = start(*arguments.format(reciting).split(), stdout=full.fileno())
        _, err = process.communicate(timeout=120)
    assert process.returncode == 1
    what = "standard output or a temporary file" if arguments == "help train" else "standard output"
    assert err.decode() == f"{command}: error: {what}: No space left on device\n"


@pytest.mark.parametrize("closed", ["<&-", "<&- >&- 2>&-"])
def test_closed_streams_give_no_traceback(
    closed: str, reciting: Path, environment: dict[str, str], tmp_path: Path
) -> None:
    command = f"{sys.executable} -m refdiff generate -q -m {reciting} h {closed}"
    done = subprocess.run(["sh", "-c", command], env=environment, cwd=tmp_path, capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.decode() == ("" if ">&-" in closed.replace("2>&-", "") else f"{TEXT}\n")


def test_a_panic_of_a_tokenizer_is_one_line(
    reciting: Path, environment: dict[str, str], run: Run, tmp_path: Path
) -> None:
    folder = shutil.copytree(reciting, tmp_path / "model")
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["decoder"] = {"type": "Strip", "content": "a", "start": 0, "stop": 2**64 - 1}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    environment["RUST_BACKTRACE"] = "1"
    done = run("generate", "-q", "-m", "model", "h")
    assert done.returncode in (1, 2)
    assert re.fullmatch(rb"refdiff generate: error: .*tokenizer\.json: the tokenizers library .*\n", done.stderr)


def test_a_slow_step_is_shown_on_a_terminal(environment: dict[str, str], tmp_path: Path) -> None:
    slow = "import refdiff.cli.terminal as t; t.AFTER = 0.01\nwith t.waiting('searching'): t._waiting_shown.wait(60)"
    (tmp_path / "slow.py").write_text(slow)
    status, seen = in_terminal(environment, tmp_path, program=["slow.py"])
    assert status == 0
    assert "\rsearching ... " in seen
    assert seen.endswith("\r\x1b[K")


def test_a_conversation_on_a_terminal(reciting: Path, environment: dict[str, str], tmp_path: Path) -> None:
    again = b"\x1b[A\r"  # the arrow up: the line before once more
    typed = b"hi\r" + again + b"/save chat.json\r/reset\r/save\r\x04"
    status, seen = in_terminal(environment, tmp_path, "generate", "-m", reciting, "--chat", "-n", "3", typed=typed)
    assert status == 0, seen
    assert "Ctrl-C stops an answer; /reset starts anew" in seen
    messages = json.loads((tmp_path / "chat.json").read_text())
    assert [message["role"] for message in messages] == ["user", "assistant"] * 2
    assert [message["content"] for message in messages[::2]] == ["hi", "hi"]
    assert "/save: got no name, expected a file" in seen
    assert "Traceback" not in seen


def test_notes_on_a_terminal_do_not_cut_the_text(reciting: Path, environment: dict[str, str], tmp_path: Path) -> None:
    status, seen = in_terminal(environment, tmp_path, "generate", "-q", "-m", reciting, "-s", "9", "h", typed=b"")
    *note, text = seen.splitlines()
    assert status == 0
    assert " ".join(note).startswith("refdiff: warning: --seed: no effect on a greedy text; add --temperature 0.7,")
    assert text == TEXT


def test_the_progress_bar_is_for_terminals_only(
    reciting: Path, run: Run, environment: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "prompts.txt").write_text("a h\nb h\nc h\n")
    command = ["generate", "-m", reciting, "--prompts-file", "prompts.txt"]
    status, seen = in_terminal(environment, tmp_path, *command)
    assert status == 0
    assert re.search(r"100%\|.*\| 3/3 \[", seen)
    assert max(len(line) for line in re.split(r"[\r\n]+", seen)) <= 80
    _, seen = in_terminal(environment, tmp_path, *command, typed=b"")
    assert [line[0] for line in re.split(r"[\r\n]+", seen) if '"text"' in line] == ["{"] * 3
    done = run(*command)
    assert b"%|" not in done.stderr
    assert b"3 prompts answered" in done.stderr


def test_help_is_fast_and_loads_nothing(environment: dict[str, str], tmp_path: Path) -> None:
    plain = {key: value for key, value in environment.items() if not key.startswith("COV")}
    assert start_seconds([sys.executable, "-m", "refdiff", "--help"], env=plain, cwd=tmp_path) < 0.12
    code = "import sys, refdiff.cli\ntry: refdiff.cli.main(['--help'])\nexcept SystemExit: print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], env=plain, cwd=tmp_path, check=True, capture_output=True, text=True
    ).stdout.split()
    assert "refdiff.cli" in loaded
    assert not {"numpy", "tokenizers", "huggingface_hub", "jinja2", "tqdm", "safetensors"} & set(loaded)


def test_generate_loads_nothing_that_a_first_token_does_not_need(
    reciting: Path, environment: dict[str, str], tmp_path: Path
) -> None:
    code = (
        "import sys, refdiff.cli\n"
        f"status = refdiff.cli.main(['generate', '-m', {str(reciting)!r}, '-n', '1', '-q', 'h'])\n"
        "print(status, *sys.modules, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], env=environment, cwd=tmp_path, capture_output=True, text=True)
    status, *loaded = done.stderr.split()
    assert (done.returncode, status) == (0, "0"), done.stderr
    assert {"numpy", "tokenizers", "refdiff.model.pretrained"} <= set(loaded)
    too_many = {
        "torch", "transformers", "huggingface_hub", "jinja2", "tqdm", "matplotlib", "scipy", "cupy", "distributed",
        "concurrent.futures.process", "refdiff.training", "refdiff.oracle", "refdiff.viz", "refdiff.convert",
        "array_api_compat.numpy", "numpy.f2py", "numpy.testing", "numpy.ma",  # the first imports all of NumPy
    }  # fmt: skip
    assert sorted(too_many & set(loaded)) == []
