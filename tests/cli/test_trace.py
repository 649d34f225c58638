"""`refdiff trace`: record, compare, and what it says when it cannot."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

import refdiff
from refdiff.cli import main
from refdiff.cli.parser import build_parser
from refdiff.cli.trace import PRECISIONS
from refdiff.oracle.inputs.files import read_arrays, write_arrays
from refdiff.oracle.rounding import FORMATS
from refdiff.oracle.trace import read_trace, trace
from refdiff.oracle.trace.known_points import POINTS
from tests.oracle.example_inputs import draw, small

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def recorded(tiny_checkpoint: Path, tmp_path: Path, capsys: Capture) -> Path:
    path = tmp_path / "run.safetensors"
    assert main(["trace", str(tiny_checkpoint), "--ids", "5,7 , 11", "-o", str(path)]) == 0
    out, err = capsys.readouterr()
    assert out == f"{path}\n"
    assert "points of 3 tokens, " in err
    return path


def test_of_ids(recorded: Path, tiny_checkpoint: Path) -> None:
    model = refdiff.DiffLlamaForCausalLM.from_pretrained(tiny_checkpoint)
    expected = trace(model, [[5, 7, 11]])
    read = read_trace(recorded)
    assert list(read) == list(expected)
    assert all(np.array_equal(x, expected[path]) for path, x in read.items())


def test_a_terminal_does_not_obey_the_name_of_a_file(
    tiny_checkpoint: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert main(["trace", str(tiny_checkpoint), "--ids", "5", "-o", "\x1b[2J.npz"]) == 0
    assert capsys.readouterr().out == "\\x1b[2J.npz\n"


def test_of_a_text(tiny_checkpoint: Path, tmp_path: Path, capsys: Capture) -> None:
    path = tmp_path / "run.safetensors"
    assert main(["trace", str(tiny_checkpoint), "hé", "-o", str(path), "--maps", "--dtype", "float64", "-q"]) == 0
    assert capsys.readouterr().err == ""
    read = read_trace(path)
    ids = refdiff.Tokenizer.from_pretrained(tiny_checkpoint)(["hé"], return_tensors="np")["input_ids"]
    assert np.array_equal(read.inputs["input_ids"], ids)
    assert read["model.layers.0.self_attn.probs1"].dtype == np.float64


def test_npz_is_written_as_npz_and_other_suffixes_are_refused(
    recorded: Path, tiny_checkpoint: Path, tmp_path: Path, capsys: Capture
) -> None:
    path = tmp_path / "run.npz"
    assert main(["trace", str(tiny_checkpoint), "--ids", "5,7,11", "-o", str(path)]) == 0
    expected = read_trace(recorded)
    with np.load(path) as arrays:
        assert set(arrays) == {*expected, "inputs.input_ids"}
        assert all(np.array_equal(arrays[name], expected[name]) for name in expected)
    assert main(["trace", "--compare", str(path), str(recorded)]) == 0
    capsys.readouterr()
    for name, got in (("run.pt", ".pt"), ("run", "no suffix")):
        assert main(["trace", str(tiny_checkpoint), "--ids", "5", "-o", str(tmp_path / name)]) == 2
        assert f"got {got}, expected a file name that ends in .safetensors, .npz" in capsys.readouterr().err
        assert not (tmp_path / name).exists()
    assert main(["trace", str(tiny_checkpoint), "--ids", "5", "-o", os.devnull]) == 2
    assert "got a device or a pipe, expected a file" in capsys.readouterr().err


def mistaken(recorded: Path, path: Path) -> Path:
    arrays, _ = read_arrays(recorded)
    at = "model.layers.1.self_attn.lambda_full"
    write_arrays(path, {**arrays, at: arrays[at] + np.float32(0.1)}, {})
    return path


def test_comparisons(recorded: Path, tmp_path: Path, capsys: Capture) -> None:
    assert main(["trace", "--compare", str(recorded), str(recorded)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "nothing diverges" in lines
    assert max(map(len, lines)) <= 80
    wrong = mistaken(recorded, tmp_path / "mine.safetensors")
    assert main(["trace", "--compare", str(wrong), str(recorded)]) == 1
    assert "first divergence: model.layers.1.self_attn.lambda_full" in capsys.readouterr().out
    assert main(["trace", "--compare", str(wrong), str(recorded), "--free", "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert (found["path"], found["mode"]) == ("model.layers.1.self_attn.lambda_full", "free")
    assert main(["trace", "--compare", str(recorded), str(recorded), "--json", "--precision", "bfloat16"]) == 0
    assert json.loads(capsys.readouterr().out)["precision"] == "bfloat16"


def test_a_comparison_fits_a_terminal_and_every_point_comes_on_request(
    recorded: Path, tmp_path: Path, capsys: Capture
) -> None:
    points = list(read_trace(recorded))
    wrong = mistaken(recorded, tmp_path / "mine.safetensors")
    row = re.compile(r"  (equal|DIFFERS) +(\S+)  (\S+)")
    for mine, status in ((recorded, 0), (wrong, 1)):
        assert main(["trace", "--compare", str(mine), str(recorded), "--all"]) == status
        every = [m.groups() for line in capsys.readouterr().out.splitlines() if (m := row.fullmatch(line))]
        assert [point for *_, point in every] == points
        assert main(["trace", "--compare", str(mine), str(recorded)]) == status
        lines = capsys.readouterr().out.splitlines()
        assert len(lines) <= 24
        assert lines[-1] == f"  and {len(points) - 10} more points; --all shows them"
        worst = [m.groups() for line in lines if (m := row.fullmatch(line))]
        assert worst == [entry for entry in every if entry in worst]  # in the order of the run
        assert sorted(float(ratio) for _, ratio, _ in worst) == sorted(float(ratio) for _, ratio, _ in every)[-10:]


def test_where_the_model_is(recorded: Path, tiny_checkpoint: Path, tmp_path: Path, capsys: Capture) -> None:
    moved = shutil.copytree(tiny_checkpoint, tmp_path / "model")
    path = tmp_path / "moved.safetensors"
    assert main(["trace", str(moved), "--ids", "5", "-o", str(path)]) == 0
    shutil.rmtree(moved)
    for more, mode in (([], "recorded"), (["-m", str(tiny_checkpoint), "--offline"], "local")):
        capsys.readouterr()
        assert main(["trace", "--compare", str(path), str(path), "--json", *more]) == 0
        assert json.loads(capsys.readouterr().out)["mode"] == mode


@pytest.mark.parametrize(
    ("args", "says"),
    [
        ([], "expected MODEL and PROMPT (or --ids) to record, or --compare MINE REF to compare"),
        (["m"], "expected MODEL and PROMPT (or --ids) to record, or --compare MINE REF to compare"),
        (["m", "text", "--ids", "1"], "expected MODEL and PROMPT (or --ids) to record, or"),
        (["m", "text"], "-o: got none, expected the file to write, such as -o run.safetensors"),
        (["m", "text", "-o", "x.npz", "--free"], "--free: is for --compare; the model to record is the first argument"),
        (["m", "text", "-o", "x.npz", "-m", "n"], "-m: is for --compare; the model to record is the first argument"),
        (["m", "--ids", "1,x", "-o", "x.npz"], "--ids: got '1,x', expected whole numbers with commas between, such as"),
        (["m", "--ids", ",", "-o", "x.npz"], "--ids: got ',', expected one or more token ids, from 0"),
        (["m", "--ids", "3,-1", "-o", "x.npz"], "--ids: got '3,-1', expected one or more token ids, from 0"),
        (["m", "x", "-o", "x.npz", "--layer", "3"], "--layer: is for --spec; the model has its own"),
        (["m", "x", "-o", "x.npz", "--set", "window=3"], "--set: is for --spec; the model has its own"),
        (["--spec", "ms_v1"], "--spec: expected the FILE of its inputs and -o, such as: refdiff trace --spec"),
        (["m", "x", "-o", "x.npz", "--spec", "ms_v1"], "PROMPT: does not go with --spec, which takes a FILE of inputs"),
        (["--compare", "a", "b", "--spec", "ms_v1"], "--spec: is to record; --compare takes MINE and REF"),
        (["m", "--compare", "a", "b"], "MODEL: is to record; --compare takes MINE and REF"),
        (["--compare", "a", "b", "-o", "x.npz"], "-o: is to record; --compare takes MINE and REF"),
    ],
)
def test_usage(args: list[str], says: str, capsys: Capture) -> None:
    assert main(["trace", *args]) == 2
    assert capsys.readouterr().err.startswith(f"refdiff trace: error: {says}")


def test_files_that_cannot_be_read(recorded: Path, tmp_path: Path, capsys: Capture) -> None:
    assert main(["trace", "--compare", str(tmp_path / "none"), str(recorded)]) == 2
    assert "no such file" in capsys.readouterr().err
    write_arrays(tmp_path / "other.safetensors", {"a": np.ones(2)}, {})
    assert main(["trace", "--compare", str(tmp_path / "other.safetensors"), str(recorded)]) == 2
    assert "none of the names in the trace is a point of the reference" in capsys.readouterr().err


def test_of_a_spec_on_the_inputs_in_a_file(tmp_path: Path, capsys: Capture) -> None:
    spec = small("ms_v1", window=3)
    x = draw(spec, dtype=np.float32)
    file, ref, mine = (tmp_path / f"{name}.safetensors" for name in ("file", "ref", "mine"))
    write_arrays(file, {**x, "out": np.ones(3, np.float32)}, {})
    words = ["trace", "--spec", "ms_v1", "--layer", "2", "--set", "window=3", str(file), "-o", str(ref)]
    assert main(words) == 0
    assert "points of " in capsys.readouterr().err
    expected = trace(spec, x)
    assert all(np.array_equal(array, expected[path]) for path, array in read_trace(ref).items())
    write_arrays(mine, {"lse1": expected["lse1"], "diff": 2 * expected["diff"]}, {})
    assert main(["trace", "--compare", str(mine), str(ref)]) == 1
    assert "first divergence: diff" in capsys.readouterr().out
    write_arrays(file, {**x, "q": x["q"][:, :, 0]}, {})
    assert main(words) == 2
    assert "q has shape (2, 12, 6), but must be (B, H, T, d)" in capsys.readouterr().err


def test_defaults() -> None:
    args = vars(build_parser().parse_args(["trace", "model", "text"]))
    assert (args["of"], args["prompt"], args["precision"], args["dtype"]) == ("model", "text", "auto", "auto")
    assert not [name for name in ("maps", "free", "json", "quiet", "compare", "output", "ids", "model") if args[name]]


def test_precisions() -> None:
    assert set(PRECISIONS) == {"auto", *FORMATS}


def test_points_have_name_shape_and_meaning_in_80_columns(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["trace", "--points"]) == 0
    said = capsys.readouterr().out
    assert max(map(len, said.splitlines())) <= 80
    module = said[said.index("model.layers.N.self_attn.") : said.index("model.layers.N.mlp.")]
    assert "\n  lambda_full  ()               λ, a number; in v2 (B, h, T, 1)\n" in module
    assert "\nmodel.layers.N  (B, T, D)  what the layer gives to the next\n" in said
    for point in POINTS:
        head, _, name = point.path.removesuffix(".input").rpartition(".")
        assert f"{point.path.removeprefix(head + '.') if 'N.' in point.path else name} " in said
        assert point.what
        assert point.shape in said
