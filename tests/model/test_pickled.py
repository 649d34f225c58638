"""A model of a file pickles as its path, any other as its weights; both are the same model where they arrive."""

from __future__ import annotations

import copy
import dataclasses
import json
import pickle
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import array_api_strict
import numpy as np
import pytest

import refdiff
from refdiff.backends import overlay
from refdiff.model.weights import flatten
from refdiff.training.adamw import AdamW

from .models import CLASSES, small_model

IDS = np.array([[3, 5, 2, 7, 11]])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    small_model().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def _same(a: Any, b: Any) -> None:
    assert type(a) is type(b)
    ours, theirs = flatten(a.params), flatten(b.params)
    assert ours.keys() == theirs.keys()
    for name, array in ours.items():
        np.testing.assert_array_equal(array, theirs[name], name)
    assert a.config == b.config
    assert (a.dtype, a.generation_config, a.source) == (b.dtype, b.generation_config, b.source)


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_a_model_of_a_file_is_its_path(kind: Any, tmp_path: Path) -> None:
    small_model(kind).save_pretrained(tmp_path / "model")
    model = kind.from_pretrained(tmp_path / "model")
    raw = pickle.dumps(model)
    assert len(raw) < 4000 < sum(a.nbytes for a in flatten(model.params).values()) / 20
    copied = pickle.loads(raw)
    _same(copied, model)
    for array in flatten(copied.params).values():
        assert not array.flags.owndata, "mapped again, not sent"
        assert not array.flags.writeable
    np.testing.assert_array_equal(_result(copied), _result(model))
    assert pickle.dumps(copied) == raw, "it is still that of a file"


def _result(model: Any) -> Any:
    out = model(IDS)
    return next(x for x in (out.logits, out.start_logits, out.last_hidden_state) if x is not None)


def test_pickle_keeps_options(folder: Path) -> None:
    model = refdiff.DiffLlamaForCausalLM.from_pretrained(folder, dtype="float32", kernels="reference", threads=3)
    model.generation_config = {"max_new_tokens": 5}
    model.config.use_cache = False
    copied = pickle.loads(pickle.dumps(model))
    _same(copied, model)
    assert copied.backend.kernels is None
    assert copied.dtype == "float32"
    assert not copied.config.use_cache
    assert copied(IDS).cache is None
    fast = pickle.loads(pickle.dumps(refdiff.DiffLlamaForCausalLM.from_pretrained(folder, threads=3)))
    assert fast._init_options["threads"] == 3
    assert fast.backend.kernels is not None
    strict = refdiff.DiffLlamaForCausalLM.from_pretrained(folder, backend=array_api_strict)
    assert pickle.loads(pickle.dumps(strict)).xp is array_api_strict


@pytest.mark.parametrize("change", ["all new", "one replaced", "all replaced", "one added", "one written to"])
def test_new_and_changed_weights_are_sent(change: str, folder: Path) -> None:
    model = small_model() if change == "all new" else refdiff.DiffLlamaForCausalLM.from_pretrained(folder)
    norm = model.params["model"]["norm"]
    match change:
        case "all new":
            pass
        case "one replaced":
            norm["weight"] = norm["weight"] * 2
        case "all replaced":
            flat = {name: np.array(a) for name, a in flatten(model.params).items()}
            AdamW(flat).step({name: np.ones_like(a) for name, a in flat.items()}, 0.1)
            model.params = refdiff.model.weights.nest(flat)
        case "one added":
            model.params["lm_head"] = {"weight": np.ones((53, 26))}
        case _:
            norm["weight"] = writable = np.array(norm["weight"])
            assert model._origin is not None
            model._origin = dataclasses.replace(model._origin, weights=flatten(model.params))
            writable += 1
    copied = pickle.loads(pickle.dumps(model))
    _same(copied, model)
    np.testing.assert_array_equal(copied(IDS).logits, model(IDS).logits)
    assert pickle.loads(pickle.dumps(copied)).source == model.source


@pytest.mark.parametrize("change", ["saved over", "deleted", "written to in place"])
def test_weights_are_sent_where_the_files_are_others_by_now(change: str, folder: Path) -> None:
    model = refdiff.DiffLlamaForCausalLM.from_pretrained(folder, mmap=change != "written to in place")
    logits = model(IDS).logits
    if change == "saved over":
        small_model(seed=5).save_pretrained(folder)
    elif change == "deleted":
        shutil.rmtree(folder)
    else:
        file = folder / "model.safetensors"
        raw = file.read_bytes()
        file.write_bytes(raw[:-400] + raw[-800:-400])
    for copied in (pickle.loads(pickle.dumps(model)), copy.deepcopy(model)):
        _same(copied, model)
        np.testing.assert_array_equal(copied(IDS).logits, logits)


def test_files_replaced_on_the_way_are_refused(folder: Path) -> None:
    raw = pickle.dumps(refdiff.DiffLlamaForCausalLM.from_pretrained(folder))
    small_model(seed=5).save_pretrained(folder)
    with pytest.raises(refdiff.CheckpointError, match=r"model: got other weights than those of the pickled model"):
        pickle.loads(raw)


def test_files_read_whole_are_read_whole_again(folder: Path) -> None:
    model = refdiff.DiffLlamaForCausalLM.from_pretrained(folder, mmap=False)
    copied = pickle.loads(pickle.dumps(model))
    _same(copied, model)
    file = folder / "model.safetensors"
    raw = file.read_bytes()
    file.write_bytes(raw[:-400] + raw[-800:-400])
    np.testing.assert_array_equal(copied(IDS).logits, model(IDS).logits)


def test_the_folder_is_found_after_a_change_of_directory(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder.parent)
    model = refdiff.DiffLlamaForCausalLM.from_pretrained(folder.name)
    monkeypatch.chdir(folder)
    raw = pickle.dumps(model)
    assert len(raw) < 4000
    assert pickle.loads(raw).source == str(folder)


def test_a_head_that_was_drawn_is_sent(tmp_path: Path) -> None:
    small_model(refdiff.DiffLlamaModel).save_pretrained(tmp_path)
    with pytest.warns(UserWarning, match="drawn at random"):
        model = refdiff.DiffLlamaForTokenClassification.from_pretrained(tmp_path)
    model.params["score"]["weight"][:] = 7
    _same(pickle.loads(pickle.dumps(model)), model)


def test_ops_of_ones_own_do_not_pickle(folder: Path) -> None:
    model = refdiff.DiffLlamaForCausalLM.from_pretrained(folder)
    own, model.ops = model.ops, overlay(model.ops, lambda name, function: function)
    with pytest.raises(
        TypeError, match=r"^ops: got replaced functions, which do not pickle, expected the backend's own; "
    ):
        pickle.dumps(model)
    model.ops = own
    pickle.dumps(model)


def test_a_copy_has_the_weights_and_ops_of_its_model() -> None:
    model = small_model()
    model.ops = overlay(model.ops, lambda name, function: function)
    copied = copy.copy(model)
    _same(copied, model)
    assert copied.ops is model.ops
    copied.generation_config = {"temperature": 0.5}
    assert model.generation_config != copied.generation_config


def test_another_process_maps_the_file_itself(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the model was loaded from a relative path, and the other process stands elsewhere."""
    monkeypatch.chdir(folder.parent)
    model = refdiff.DiffLlamaForCausalLM.from_pretrained(folder.name)
    (tmp_path / "pickle").write_bytes(pickle.dumps(model))
    code = """
import json, pickle, sys
model = pickle.load(open(sys.argv[1], "rb"))
print(json.dumps(model.generate([[3, 5, 2]], max_new_tokens=6).tolist()))
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "pickle")],
        capture_output=True, check=True, cwd=Path(refdiff.__file__).parents[1],
    )  # fmt: skip
    assert json.loads(done.stdout) == model.generate([[3, 5, 2]], max_new_tokens=6).tolist()
