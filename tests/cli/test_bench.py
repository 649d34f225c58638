"""`refdiff bench`: flags that do not fit together, a run, exit statuses, and Ctrl-C."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Generator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from refdiff.bench import measure as bench
from refdiff.bench.device import UnavailableError
from refdiff.bench.measure import Measured
from refdiff.bench.processes import SIDES
from refdiff.bench.rows import Row, Work
from refdiff.bench.side import Settings
from refdiff.bench.sizes import LIKE as SIZES
from refdiff.cli import main
from refdiff.cli.bench import LIKE, PEERS
from refdiff.cli.parser import build_parser

Capture = pytest.CaptureFixture[str]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rows", "speed"], "--rows: got 'speed', expected cold"),
        (["--rows", "load", "--train"], "--train, --rows: got both, expected one of them"),
        (["-m", "x", "--like", "tiny"], "-m, --like: got both, expected one"),
        (["--folder", "x"], "--folder: keeps the checkpoint of --like"),
        (["--against", "onnxruntime", "--rows", "load"], "--against onnxruntime: compares products only"),
        (
            ["--against", "numpy", "--against", "onnxruntime", "--rows", "load"],
            "--against numpy: compares products only",
        ),
        (["--dtype", "float16"], "--dtype: got float16, expected float32 or float64 with --backend numpy"),
        (["--backend", "cupy", "--rows", "product:8"], "--rows product: is measured on a CPU"),
        (["--backend", "cupy", "--against", "onnxruntime"], "--against onnxruntime: compares products, on a CPU"),
        (["--backend", "cupy", "--against", "numpy"], "--against numpy: compares products, on a CPU"),
        (
            ["--backend", "cupy", "--dtype", "float16", "--train"],
            "--dtype: got float16, expected float32 or float64 for training",
        ),
        (["--plot", "x.txt"], "--plot x.txt: got .txt, expected a file name that ends in .png, .svg, .pdf"),
        (["--plot", "no/x.png"], "--plot no/x.png: the folder no does not exist"),
        (["--plot", "x.png", "--rows", "decode:128,load"], "--plot: nothing to plot: measure prefill,"),
        (["--plot", "x.png", "--train"], "--plot: nothing to plot: measure prefill, decode or memory"),
        (["--json", "no/x.json"], "--json no/x.json: the folder no does not exist"),
        (["--json", "."], "--json .: got a folder, expected a file; name a file in it"),
    ],
)
def test_flags_that_do_not_fit(arguments: list[str], message: str, capsys: Capture) -> None:
    assert main(["bench", *arguments]) == 2
    assert f"refdiff bench: error: {message}" in capsys.readouterr().err


def test_what_may_not_be_written_is_refused_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    there = tmp_path / "there.json"
    there.touch()
    for locked, file in ((tmp_path, tmp_path / "new.json"), (there, there)):
        monkeypatch.setattr(os, "access", lambda path, mode, locked=locked: mode != os.W_OK or Path(path) != locked)
        assert main(["bench", "--json", str(file), "-q"]) == 2
        assert f"--json {file}: may not be written; name another place" in capsys.readouterr().err


def test_without_a_device_one_sentence_says_so(tmp_path: Path) -> None:
    """Before a checkpoint is written; with a device that answers there is nothing to say."""
    folder = tmp_path / "like"
    command = [sys.executable, "-m", "refdiff", "bench", "--backend", "cupy", "--like", "tiny", "--folder", str(folder)]
    hidden = {**os.environ, "CUDA_VISIBLE_DEVICES": "-1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=hidden)
    assert done.returncode == 1
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert "refdiff bench: error: " in done.stderr
    assert "is not available (" in done.stderr
    assert done.stderr.rstrip().endswith(("--backend numpy", 'backend "numpy"'))
    assert not folder.exists()


@pytest.mark.slow
def test_a_run(tiny_checkpoint: Path, tmp_path: Path, capsys: Capture) -> None:
    file = tmp_path / "report.json"
    rows = ["--rows", "decode:4,prefill:8x2"]
    arguments = ["bench", "-m", str(tiny_checkpoint), *rows, "--quick", "--pairs", "2", "--threads", "1"]
    assert main([*arguments, "--json", str(file)]) == 0
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert [line.split("  ")[0] for line in lines[1:5:2]] == ["decode 4", "prefill 8, 2 rows"]
    assert lines[1].endswith(" tok/s")
    assert "of gemv (" in lines[2]
    assert "of sgemm (" in lines[4]
    assert max(map(len, lines)) < 80
    assert err.splitlines() == [f"refdiff bench: {title}: measured" for title in ("decode 4", "prefill 8, 2 rows")]
    report = json.loads(file.read_text(encoding="utf-8"))
    assert [row["row"] for row in report["rows"]] == ["decode:4", "prefill:8x2"]
    assert report["settings"]["pairs"] == 2
    assert report["machine"]["threads"] == 1
    assert len(report["rows"][0]["sides"]["refdiff"]["seconds"]) == 2
    assert len(report["rows"][0]["ceiling"]["rates"]) == 2
    assert str(tiny_checkpoint) not in out + file.read_text(encoding="utf-8")


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[Row], Settings]]:
    """Nothing is measured: a row that is named "load" goes well, "lookup" gave other tokens, "cold" failed."""
    calls: list[tuple[list[Row], Settings]] = []

    def run(rows: list[Row], settings: Settings, turn: Any) -> Generator[Measured, None, None]:
        calls.append((rows, settings))
        for row in rows:
            turn(row, "refdiff")
            if row.kind == "cold":
                yield Measured(row, Work("s"), error="no room")
            else:
                answers = {"refdiff": [{"seconds": 1.0, "tokens": [1]}]}
                if settings.against:
                    answers["transformers"] = [{"seconds": 2.0, "tokens": [2 if row.kind == "lookup" else 1]}]
                yield Measured(row, Work("s"), answers)

    monkeypatch.setattr(bench, "run", run)
    return calls


@pytest.mark.parametrize(("rows", "status"), [("load", 0), ("lookup", 1), ("cold", 1), ("load,lookup", 1)])
def test_exit_status(
    rows: str, status: int, calls: list[tuple[list[Row], Settings]], tiny_checkpoint: Path, capsys: Capture
) -> None:
    given = ["bench", "-m", str(tiny_checkpoint), "--rows", rows, "--against", "transformers", "-q"]
    assert main(given) == status
    out, err = capsys.readouterr()
    assert ("FAILED" in out) == (status == 1)
    assert ("token 0 of row 0 is 1 here and 2 there" in out) == ("lookup" in rows)
    assert err == ""


def test_a_broken_checkpoint_is_said_once(tiny_checkpoint: Path, tmp_path: Path, capsys: Capture) -> None:
    folder = shutil.copytree(tiny_checkpoint, tmp_path / "broken")
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    assert main(["bench", "-m", str(folder), "--quick"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("model.safetensors") == err.count("\n") == 1


def test_what_is_measured_by_default(calls: list[tuple[list[Row], Settings]], tiny_checkpoint: Path) -> None:
    from refdiff.bench.rows import ALL, QUICK, QUICK_TRAIN, TRAIN

    for flags, expected, pairs in (
        ([], ALL, 5),
        (["--quick"], QUICK, 1),
        (["--train"], TRAIN, 5),
        (["--train", "--quick", "--pairs", "3"], QUICK_TRAIN, 3),
    ):
        main(["bench", "-q", "-m", str(tiny_checkpoint), *flags])
        rows, settings = calls[-1]
        assert rows == expected
        assert settings.pairs == pairs
        assert (settings.rest == 0) == ("--quick" in flags)
    main(["bench", "-q", "--train", "--threads", "3", "--dtype", "float64"])
    assert calls[-1][1].threads == 3
    assert calls[-1][1].dtype == "float64"
    assert calls[-1][1].folder is None, "training needs no checkpoint"


def test_like_writes_a_checkpoint_once(
    calls: list[tuple[list[Row], Settings]], tmp_path: Path, capsys: Capture
) -> None:
    kept = tmp_path / "kept"
    for _ in range(2):
        assert main(["bench", "--like", "tiny", "--folder", str(kept), "--rows", "load"]) == 0
        assert calls[-1][1].folder == str(kept)
    out, err = capsys.readouterr()
    assert "random weights in the dimensions of tiny, 106,880 parameters" in out.replace("\n", " ")
    assert err.startswith("refdiff bench: random weights in the dimensions of tiny\n")
    assert main(["bench", "--rows", "load", "-q"]) == 0
    assert calls[-1][1].folder not in (None, str(kept))
    new = tmp_path / "new"
    assert main(["bench", "--like", "tiny", "--folder", str(new), "--rows", "product:1", "-q"]) == 0
    assert calls[-1][1].folder is None, "products need no checkpoint"
    assert not new.exists()


def test_markdown(calls: list[tuple[list[Row], Settings]], tiny_checkpoint: Path, capsys: Capture) -> None:
    assert main(["bench", "-m", str(tiny_checkpoint), "--rows", "load", "--markdown", "-q"]) == 0
    assert capsys.readouterr().out.startswith(
        "| | refdiff | share of the ceiling |\n|---|---|---|\n| load | 1.00 s | |"
    )


def test_a_file_that_fails_in_the_end_keeps_nothing_else_from_being_shown(
    calls: list[tuple[list[Row], Settings]], tiny_checkpoint: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: Capture,
) -> None:  # fmt: skip
    pytest.importorskip("matplotlib")
    plotted: list[str] = []
    monkeypatch.setattr(
        "refdiff.bench.plot.draw", lambda report: SimpleNamespace(savefig=lambda file, dpi: plotted.append(file))
    )
    json_file, picture = tmp_path / "x.json", str(tmp_path / "x.png")

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(json_file))

    monkeypatch.setattr("refdiff.files.write_atomically", full)
    given = ["bench", "-m", str(tiny_checkpoint), "--rows", "load,decode:2,decode:2x2", "-q"]
    assert main([*given, "--json", str(json_file), "--plot", picture]) == 1
    out, err = capsys.readouterr()
    assert out.splitlines()[1].split() == ["load", "1.00", "s"]
    assert "No space left on device" in err
    assert plotted == [picture]


def test_what_is_not_installed(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    def run(*_: object) -> Generator[Measured, None, None]:
        raise UnavailableError("--against transformers needs transformers and torch")
        yield

    monkeypatch.setattr(bench, "run", run)
    assert main(["bench", "--train", "--against", "transformers", "-q"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err == "refdiff bench: error: --against transformers needs transformers and torch\n"


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks for processes")
def test_ctrl_c_ends_all_processes_and_shows_what_there_is(environment: dict[str, str], tmp_path: Path) -> None:
    command = [sys.executable, "-m", "refdiff", "bench", "--quick", "--rows", "decode:4", "--pairs", "100000"]
    process = subprocess.Popen(
        [*command, "--threads", "1"], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env={**environment, "TMPDIR": str(tmp_path)}, cwd=tmp_path,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 60
        while not any(map(_measures, children := _children(process.pid))) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert len(children) == 2, "refdiff and the ceilings"
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130, err
    assert err.decode().endswith("refdiff: interrupted\n")
    assert "Traceback" not in err.decode()
    assert not [pid for pid in children if Path(f"/proc/{pid}").exists()]
    assert list(tmp_path.iterdir()) == [], "the temporary checkpoint is still there"


def _measures(pid: int) -> bool:
    """Whether a process holds the 1 GB that the ceiling reads: both are up, and the rounds have begun."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") > 1_000_000_000
    except OSError:
        return False


def _children(parent: int) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdecimal() and int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1]) == parent:
                found.append(int(entry.name))
        except OSError:
            continue
    return found


def test_what_was_measured_until_ctrl_c_is_shown(
    monkeypatch: pytest.MonkeyPatch, tiny_checkpoint: Path, capsys: Capture
) -> None:
    def run(rows: list[Row], *_: object) -> Generator[Measured, None, None]:
        yield Measured(rows[0], Work("s"), {"refdiff": [{"seconds": 1.0}]})
        raise KeyboardInterrupt

    monkeypatch.setattr(bench, "run", run)
    assert main(["bench", "-m", str(tiny_checkpoint), "--rows", "load,cold", "-q"]) == 130
    out, err = capsys.readouterr()
    assert out.splitlines()[1].split() == ["load", "1.00", "s"]
    assert err == "refdiff: interrupted\n"


def test_choices_are_those_that_there_are() -> None:
    """They are written down there again, so that `--help` need not import what measures."""
    assert set(LIKE) == set(SIZES)
    assert set(PEERS) < set(SIDES)


def test_defaults() -> None:
    args = build_parser().parse_args(["bench"])
    assert (args.model, args.like, args.folder, args.against, args.rows, args.pairs) == (None,) * 6
    assert (args.threads, args.dtype, args.train, args.quick) == (0, "float32", False, False)
    args = build_parser().parse_args(["bench", "--against", "transformers", "--against", "onnxruntime"])
    assert args.against == ["transformers", "onnxruntime"]
