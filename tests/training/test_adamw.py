"""AdamW by hand; against torch's in tests/parity/test_optimizers.py."""

from __future__ import annotations

import math

import numpy as np
import pytest

from refdiff.training.adamw import AdamW


def test_two_steps_by_hand() -> None:
    p = {"w": np.array([[2.0]]), "b": np.array([2.0])}
    adamw = AdamW(p, betas=(0.9, 0.99), eps=1e-3, weight_decay=0.5)
    m = v = 0.0
    w = b = 2.0
    for t, g in ((1, 3.0), (2, -1.0)):
        adamw.step({"w": np.array([[g]]), "b": np.array([g])}, 0.1)
        m, v = 0.9 * m + 0.1 * g, 0.99 * v + 0.01 * g * g
        move = 0.1 * (m / (1 - 0.9**t)) / (math.sqrt(v / (1 - 0.99**t)) + 1e-3)
        w, b = w - 0.1 * 0.5 * w - move, b - move
        assert abs(float(p["w"][0, 0]) - w) < 1e-15
        assert abs(float(p["b"][0]) - b) < 1e-15
    assert adamw.steps == 2


def test_the_first_step_is_as_long_as_the_rate_whatever_the_gradient() -> None:
    for size in (1e-4, 1.0, 1e4):
        p = {"b": np.zeros(3)}
        AdamW(p, eps=1e-12).step({"b": size * np.array([1.0, -1.0, 1.0])}, 0.01)
        np.testing.assert_allclose(p["b"], [-0.01, 0.01, -0.01], rtol=1e-7)


def test_restored_state_goes_on_bit_for_bit() -> None:
    rng = np.random.default_rng(0)
    grads = [{"w": rng.normal(size=(3, 5)).astype(np.float32)} for _ in range(6)]
    whole = {"w": np.ones((3, 5), np.float32)}
    adamw = AdamW(whole)
    for g in grads:
        adamw.step(g, 0.1)
    first = {"w": np.ones((3, 5), np.float32)}
    before = AdamW(first)
    for g in grads[:3]:
        before.step(g, 0.1)
    second = {"w": first["w"].copy()}
    after = AdamW(second)
    after.restore({name: a.copy() for name, a in before.state().items()}, 3)
    for g in grads[3:]:
        after.step(g, 0.1)
    np.testing.assert_array_equal(second["w"], whole["w"])
    assert second["w"].dtype == np.float32


@pytest.mark.parametrize("wrong", [{"betas": (1.0, 0.9)}, {"eps": 0.0}, {"weight_decay": -1.0}])
def test_numbers_out_of_range(wrong: dict) -> None:
    with pytest.raises(ValueError, match="AdamW: betas are"):
        AdamW({}, **wrong)
