"""Traces from files and folders; those of transformers itself are in tests/parity."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import refdiff
from refdiff.errors import CheckpointError
from refdiff.oracle import first_divergence, read_trace, trace
from refdiff.oracle.inputs.arrays import write_arrays
from refdiff.oracle.trace.trace import FORMAT
from tests.model.models import ids, small_model
from tests.oracle.trace.test_trace import SPEC, run_again, spec_inputs
from tests.tolerances import FLOAT64, close


@pytest.fixture
def model(tmp_path: Path) -> Any:
    """A model that was loaded from a folder, which its traces name."""
    small_model().save_pretrained(tmp_path / "model")
    return refdiff.DiffLlamaForCausalLM.from_pretrained(tmp_path / "model")


def test_a_spec_is_run_again_from_its_file(tmp_path: Path) -> None:
    traced = trace(SPEC, spec_inputs())
    traced.write(tmp_path / "run.safetensors")
    close(run_again(read_trace(tmp_path / "run.safetensors"))["out"], traced["out"], FLOAT64)


def test_a_model_is_run_again_where_it_is_there(tmp_path: Path, model: Any) -> None:
    traced = trace(model, ids(0, 2, 5))
    traced.write(tmp_path / "run.safetensors")
    close(run_again(read_trace(tmp_path / "run.safetensors"))["lm_head"], traced["lm_head"], FLOAT64 * 10)
    (tmp_path / "model").rename(tmp_path / "elsewhere")
    read = read_trace(tmp_path / "run.safetensors")
    assert read.run is None
    for given in (tmp_path / "elsewhere", str(tmp_path / "elsewhere"), model):
        read = read_trace(tmp_path / "run.safetensors", model=given)
        close(run_again(read)["lm_head"], traced["lm_head"], FLOAT64 * 10)
        assert not first_divergence(traced, tmp_path / "run.safetensors", model=given)


def test_a_run_of_16_bit_weights_is_one_of_float32(tmp_path: Path) -> None:
    small_model().save_pretrained(tmp_path / "model", dtype="bfloat16")
    model = refdiff.DiffLlamaForCausalLM.from_pretrained(tmp_path / "model")
    trace(model, ids(0, 2, 5)).write(tmp_path / "run.safetensors")
    found = first_divergence(tmp_path / "run.safetensors", tmp_path / "run.safetensors")
    assert (found.path, found.precision) == (None, "float32")


@pytest.mark.parametrize("change", ["config", "folder", "file"])
def test_a_trace_names_the_folder_of_its_own_model_alone(tmp_path: Path, model: Any, change: str) -> None:
    traced = trace(model, ids(0, 2, 5))
    about = {**traced.about}
    if change == "config":
        about["config"] = {**about["config"], "rms_norm_eps": 1e-3}
    else:
        about["model"] = str(tmp_path if change == "folder" else tmp_path / "model" / "config.json")
    dataclasses.replace(traced, about=about).write(tmp_path / "run.safetensors")
    assert read_trace(tmp_path / "run.safetensors").run is None


@pytest.mark.parametrize(
    "about",
    [
        "", "[" * 100_000, '{"spec": {"x": 1}}', '{"model": "x\\u0000"}',
        '{"model": "FOLDER", "config": CONFIG, "class": "Tokenizer"}',
    ],
    ids=range(5),
)  # fmt: skip
def test_a_trace_that_says_nonsense(tmp_path: Path, model: Any, about: str) -> None:
    config = json.dumps(model.config.to_dict())
    about = about.replace("FOLDER", str(tmp_path / "model")).replace("CONFIG", config)
    path = tmp_path / "run.safetensors"
    write_arrays(path, {"a": np.ones(2)}, {"format": FORMAT, "about": about, "order": '["a"]'})
    try:
        assert read_trace(path).run is None
    except CheckpointError as error:
        assert "run.safetensors: not a trace that this version writes" in str(error)  # noqa: PT017
    write_arrays(path, {"a": np.ones(2)}, {"format": FORMAT, "about": "{}", "order": '["b"]'})
    with pytest.raises(CheckpointError, match=r"run\.safetensors: not a trace that this version writes: KeyError: 'b'"):
        read_trace(path)


def test_inputs_that_the_model_does_not_take_name_the_file(tmp_path: Path, model: Any) -> None:
    path, traced = tmp_path / "run.safetensors", trace(model, [[1, 2, 3]])
    for bad in (np.ones((1, 3), np.float32), np.full((1, 3), 10**6), np.ones((1, 3, 2), np.int64)):
        dataclasses.replace(traced, inputs={**traced.inputs, "input_ids": bad}).write(path)
        with pytest.raises(CheckpointError, match=r"run\.safetensors: its run cannot be repeated: "):
            first_divergence(path, path)


def test_a_trace_replaces_files_alone() -> None:
    with pytest.raises(OSError, match="not a regular file, but a device; name another file"):
        trace(SPEC, spec_inputs()).write("/dev/full")
