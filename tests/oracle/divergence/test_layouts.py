"""Arrays in other orders of axes, with axes side by side, and with both maps in one."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from refdiff.oracle.divergence.layouts import Axes, arranged, arrangements, axes_of, maps_apart
from refdiff.oracle.trace import trace
from tests.model.models import ids, small_model
from tests.oracle.arrays import same_bits

REF = trace(small_model(), ids(0, 2, 5), maps=True)
AT = "model.layers.0.self_attn."


@pytest.mark.parametrize(
    ("path", "letters", "sizes"),
    [
        (AT + "q_proj", "BT(He)", (2, 5, 8, 6)),
        (AT + "v_proj", "BT(He)", (2, 5, 4, 6)),
        (AT + "scaled", "BT(He)", (2, 5, 4, 12)),
        (AT + "values", "BHS(pd)", (2, 2, 5, 2, 6)),
        (AT + "scores2", "BHTS", (2, 4, 5, 5)),
        (AT + "lse1", "BHT", (2, 4, 5)),
        (AT + "lambda_full", "", ()),
        (AT + "o_proj", "BTD", (2, 5, 26)),
        ("model.rotary_emb.cos", "B1Tn", (1, 1, 5, 3)),
        ("model.layers.1", "BTD", (2, 5, 26)),
    ],
)
def test_axes(path: str, letters: str, sizes: tuple[int, ...]) -> None:
    assert axes_of(path, REF) == Axes(letters, sizes)


def test_every_order_of_axes_is_undone() -> None:
    x = np.arange(2 * 3 * 5 * 7.0).reshape(2, 3, 5, 7)
    for order in itertools.permutations(range(4)):
        found = list(arrangements(x.transpose(order), Axes("BHTe", (2, 3, 5, 7))))
        assert len(found) == 1
        array, how = found[0]
        assert same_bits(np.ascontiguousarray(array), x)
        assert how == "".join("BHTe"[i] for i in order)


@pytest.mark.parametrize(
    ("path", "change", "how"),
    [
        (AT + "diff", lambda x: x, ""),
        (AT + "diff", lambda x: x.transpose(0, 2, 1, 3), "BTHe"),
        (AT + "diff", lambda x: x.transpose(0, 2, 1, 3).reshape(2, 5, 48), "BTHe"),
        (AT + "diff", lambda x: x.transpose(0, 2, 1, 3).reshape(10, 4, 12), "BTHe"),
        (AT + "diff", lambda x: x.reshape(8, 5, 12)[:, None], "BHTe"),
        (AT + "scaled", lambda x: x.reshape(2, 5, 4, 12).transpose(0, 2, 1, 3), "BHTe"),
        (AT + "q_rope", lambda x: x.transpose(2, 0, 3, 1), "TBdH"),
        (AT + "lse1", lambda x: x.transpose(0, 2, 1)[..., None], "BTH"),
        (AT + "lambda_full", lambda x: x.reshape(1, 1), ""),
        ("model.rotary_emb.cos", lambda x: np.concatenate([x, x], -1)[0], "Tn"),
        ("model.rotary_emb.sin", lambda x: np.repeat(x, 2, -1), ""),
    ],
)
def test_arranged(path: str, change: object, how: str) -> None:
    x = REF[path].astype(np.float32)
    array, said = arranged(change(x), path, REF)  # type: ignore[operator]
    assert said == how
    assert array is not None
    assert array.dtype == np.float64
    assert array.shape == REF[path].shape
    assert np.array_equal(array.astype(np.float32), x)


def test_of_two_that_fit_the_nearer_one_is_taken() -> None:
    ref = {"scores": np.arange(9.0).reshape(1, 1, 3, 3)}
    array, how = arranged(ref["scores"][0, 0].T[None], "scores", ref)
    assert array is not None
    assert how == "ST"
    assert np.array_equal(array, ref["scores"])


def test_the_plain_one_comes_first() -> None:
    ref = {"scores": np.arange(9.0).reshape(1, 1, 3, 3)}
    array, how = arranged(np.swapaxes(ref["scores"], 2, 3), "scores", ref)
    assert how == ""
    assert array is not None
    assert not np.array_equal(array, ref["scores"])


def test_shapes_that_are_none_of_it() -> None:
    array, said = arranged(np.ones((2, 5, 7)), AT + "diff", REF)
    assert array is None
    assert said == "has shape (2, 5, 7), which is no arrangement of BHTe (2, 4, 5, 12)"


@pytest.mark.parametrize("name", ["scores", "probs", "attn", "lse"])
@pytest.mark.parametrize("interleaved", [False, True])
def test_both_maps_in_one(name: str, interleaved: bool) -> None:
    one, two = (REF[f"{AT}{name}{i}"] for i in "12")
    both = np.stack([one, two], 2).reshape(2, 8, *one.shape[2:]) if interleaved else np.concatenate([one, two], 1)
    found = maps_apart({AT + name: both, "other": one}, REF, interleaved)
    assert found.keys() == {f"{AT}{name}1", f"{AT}{name}2", "other"}
    assert np.array_equal(found[f"{AT}{name}1"], one)
    assert np.array_equal(found[f"{AT}{name}2"], two)


def test_both_maps_token_by_token() -> None:
    both = np.concatenate([REF[AT + "attn1"], REF[AT + "attn2"]], 1).transpose(0, 2, 1, 3)
    found = maps_apart({AT + "attn": both}, REF, interleaved=False)
    assert np.array_equal(found[AT + "attn2"], REF[AT + "attn2"])


def test_kq_is_not_scaled_yet() -> None:
    kq = np.sqrt(6) * np.concatenate([REF[AT + "scores1"], REF[AT + "scores2"]], 1)
    found = maps_apart({AT + "kq": kq}, REF, interleaved=False)
    assert np.allclose(found[AT + "scores2"], REF[AT + "scores2"], rtol=1e-14)


def test_halves_of_vllm() -> None:
    x = REF[AT + "attn1"]
    found = maps_apart({AT + "attn11": x[..., :6], AT + "attn12": x[..., 6:], AT + "attn21": x[..., :6]}, REF, False)
    assert found.keys() == {AT + "attn1"}
    assert np.array_equal(found[AT + "attn1"], x)


def test_maps_of_another_size_are_left_out() -> None:
    assert maps_apart({AT + "attn": np.ones((3, 3))}, REF, interleaved=False) == {}
