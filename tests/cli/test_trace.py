"""`refdiff trace`: record, compare, and what it says when it cannot."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

import numpy as np
import pytest

import refdiff
from refdiff.cli.trace import PRECISIONS
from refdiff.oracle.inputs.arrays import read_arrays, write_arrays
from refdiff.oracle.rounding import FORMATS
from refdiff.oracle.trace import read_trace, trace
from tests.model.models import ids, small_model
from tests.oracle.example_inputs import draw, small

from .conftest import Cli, copy

AT = "model.layers.1.self_attn.lambda_full"


@pytest.fixture
def recorded(tiny_checkpoint: Path, here: Path, cli: Cli) -> Path:
    done = cli("trace", tiny_checkpoint, "--ids", "5,7 , 11", "-o", "run.safetensors")
    assert done[:2] == (0, "run.safetensors\n")
    assert "points of 3 tokens, " in done.err
    return here / "run.safetensors"


@pytest.fixture
def wrong(recorded: Path, here: Path) -> Path:
    """The recording with another λ in layer 1."""
    arrays, _ = read_arrays(recorded)
    write_arrays(here / "mine.safetensors", {**arrays, AT: arrays[AT] + np.float32(0.1)}, {})
    return here / "mine.safetensors"


def test_of_ids(recorded: Path, tiny_checkpoint: Path, here: Path, cli: Cli) -> None:
    expected = trace(refdiff.DiffLlamaForCausalLM.from_pretrained(tiny_checkpoint), [[5, 7, 11]])
    read = read_trace(recorded)
    assert list(read) == list(expected)
    assert all(np.array_equal(x, expected[path]) for path, x in read.items())
    assert cli("trace", tiny_checkpoint, "--ids", "5,7,11", "-o", "run.npz").status == 0
    with np.load(here / "run.npz") as arrays:
        assert set(arrays) == {*expected, "inputs.input_ids"}
        assert all(np.array_equal(arrays[name], expected[name]) for name in expected)
    assert cli("trace", "--compare", "run.npz", recorded).status == 0
    assert "points of 1 token, " in cli("trace", tiny_checkpoint, "--ids", "5", "-o", "one.npz").err


def test_of_a_text(tiny_checkpoint: Path, tmp_path: Path, cli: Cli) -> None:
    path = tmp_path / "run.safetensors"
    done = cli("trace", tiny_checkpoint, "hé", "-o", path, "--maps", "--dtype", "float64", "-q")
    assert done == (0, f"{path}\n", "")
    read = read_trace(path)
    ids = refdiff.Tokenizer.from_pretrained(tiny_checkpoint)(["hé"], return_tensors="np")["input_ids"]
    assert np.array_equal(read.inputs["input_ids"], ids)
    assert read["model.layers.0.self_attn.probs1"].dtype == np.float64


def test_of_standard_input(tiny_checkpoint: Path, here: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"h\n")))
    done = cli("trace", tiny_checkpoint, "-", "-o", "piped.npz")
    assert (done.status, done.out) == (0, "piped.npz\n")
    assert cli("trace", tiny_checkpoint, "h", "-o", "typed.npz").err == done.err
    with np.load("piped.npz") as piped, np.load("typed.npz") as typed:
        np.testing.assert_array_equal(piped["inputs.input_ids"], typed["inputs.input_ids"])


def test_a_checkpoint_with_another_head_is_refused_with_ids_too(tiny_checkpoint: Path, here: Path, cli: Cli) -> None:
    folder = copy(tiny_checkpoint, here, "config.json", architectures=["DiffLlamaForTokenClassification"])
    done = cli("trace", folder, "--ids", "5", "-o", "run.npz")
    assert (done.status, done.out) == (2, "")
    assert "a DiffLlamaForTokenClassification, which has no language model's head" in done.err


def test_a_comparison_fits_a_terminal_and_every_point_comes_on_request(recorded: Path, wrong: Path, cli: Cli) -> None:
    points = list(read_trace(recorded))
    assert set(PRECISIONS) == {"auto", *FORMATS}
    found = json.loads(cli("trace", "--compare", wrong, recorded, "--json", "--precision", "bfloat16").out)
    assert found["precision"] == "bfloat16"
    row = re.compile(r"  (equal|DIFFERS) +(\S+)  (\S+)")
    for mine, status, said in ((recorded, 0, "nothing diverges"), (wrong, 1, f"first divergence: {AT}")):
        done = cli("trace", "--compare", mine, recorded, "--all")
        every = [m.groups() for line in done.out.splitlines() if (m := row.fullmatch(line))]
        assert (done.status, [point for *_, point in every]) == (status, points)
        done = cli("trace", "--compare", mine, recorded)
        lines = done.out.splitlines()
        assert done.status == status
        assert any(line.startswith(said) for line in lines)
        assert len(lines) <= 24
        assert max(map(len, lines)) <= 80
        assert lines[-1] == f"  and {len(points) - 10} more points; --all shows them"
        worst = [m.groups() for line in lines if (m := row.fullmatch(line))]
        assert worst == [entry for entry in every if entry in worst]  # in the order of the run
        assert sorted(float(ratio) for _, ratio, _ in worst) == sorted(float(ratio) for _, ratio, _ in every)[-10:]


def test_of_a_spec_on_the_inputs_in_a_file(here: Path, cli: Cli) -> None:
    spec = small("ms_v1", window=3)
    x = draw(spec, dtype=np.float32)
    write_arrays(here / "file.safetensors", {**x, "out": np.ones(3, np.float32)}, {})
    words = ("trace", "--spec", "ms_v1", "--layer", "2", "--set", "window=3", "file.safetensors")
    done = cli(*words, "-o", "ref.safetensors")
    assert done.status == 0
    assert "points of file.safetensors, " in done.err
    expected = trace(spec, x)
    assert all(np.array_equal(array, expected[path]) for path, array in read_trace(here / "ref.safetensors").items())
    write_arrays(here / "mine.safetensors", {"lse1": expected["lse1"], "diff": 2 * expected["diff"]}, {})
    done = cli("trace", "--compare", "mine.safetensors", "ref.safetensors")
    assert done.status == 1
    assert "first divergence: diff" in done.out


def test_points_have_name_shape_and_meaning_in_80_columns(cli: Cli) -> None:
    said = cli("trace", "--points").out
    assert max(map(len, said.splitlines())) <= 80
    listed, module = set(), ""
    for line in said.split("\n\n")[1].splitlines():
        name, *about = line.split()
        module = "" if not line.startswith("  ") else module
        if about:
            listed.add(module + name)
        else:
            module = name
    runs = [trace(small_model(variant=name), ids(0, 1, 3), maps=True) for name in ("hf", "v2")]
    assert listed == {re.sub(r"(?<=layers\.)\d+", "N", path) for run in runs for path in run}
