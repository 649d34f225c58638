"""A model pickles with its weights and options, and is the same model where it arrives."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import array_api_strict
import numpy as np
import pytest

import refdiff
from refdiff.backends import overlay
from refdiff.model.weights import flatten

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
def test_a_pickled_model_is_the_same_model(kind: Any, tmp_path: Path) -> None:
    small_model(kind).save_pretrained(tmp_path / "model")
    model = kind.from_pretrained(tmp_path / "model")
    copied = pickle.loads(pickle.dumps(model))
    _same(copied, model)
    np.testing.assert_array_equal(_result(copied), _result(model))


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
