"""AdamW, Muon and the learning rate by hand; against torch's in tests/parity/test_optimizers.py."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest

from refdiff.training.adamw import AdamW
from refdiff.training.muon import Muon, newton_schulz
from refdiff.training.schedule import clip, global_norm, learning_rate
from tests.cuda.emulation import OnDevice


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


@pytest.mark.parametrize("wrong", [{"betas": (1.0, 0.9)}, {"eps": 0.0}, {"weight_decay": -1.0}])
def test_numbers_out_of_range(wrong: dict) -> None:
    with pytest.raises(ValueError, match="AdamW: betas, eps, weight_decay: got"):
        AdamW({}, **wrong)
    with pytest.raises(ValueError, match=r"momentum: got 1\.0"):
        Muon({}, momentum=1.0)


# ---- Muon


@pytest.mark.parametrize("shape", [(5, 13), (13, 5), (7, 7)])
def test_singular_values_come_near_one_and_vectors_stay(shape: tuple[int, int]) -> None:
    m = np.random.default_rng(0).normal(size=shape)
    u, _, vt = np.linalg.svd(m, full_matrices=False)
    inside = u.T @ newton_schulz(m) @ vt.T
    np.testing.assert_allclose(inside, np.diag(np.diag(inside)), atol=1e-12)
    assert 0.6 < np.diag(inside).min() < np.diag(inside).max() < 1.3
    np.testing.assert_allclose(newton_schulz(1e-3 * m), newton_schulz(m), rtol=1e-10)  # whatever the length
    assert not newton_schulz(0 * m).any()


def test_the_host_asks_for_no_number_on_the_way(monkeypatch: pytest.MonkeyPatch) -> None:
    m = np.random.default_rng(0).normal(size=(5, 13)).view(OnDevice)
    monkeypatch.setattr(OnDevice, "refusing", True)
    assert newton_schulz(m).shape == (5, 13)


def test_embeddings_heads_and_vectors_go_to_adamw() -> None:
    names = {
        "model.embed_tokens.weight": (5, 4),
        "model.layers.0.mlp.up_proj.weight": (6, 4),
        "model.layers.0.self_attn.lambda_q1": (3,),
        "lm_head.weight": (5, 4),
    }
    rng = np.random.default_rng(0)
    start = {name: rng.normal(size=shape) for name, shape in names.items()}
    grads = {name: rng.normal(size=shape) for name, shape in names.items()}
    ours, plain = ({name: a.copy() for name, a in start.items()} for _ in range(2))
    Muon(ours).step(grads, 0.1)
    AdamW(plain).step(grads, 0.1)
    assert {name for name in names if not np.array_equal(ours[name], plain[name])} == {
        "model.layers.0.mlp.up_proj.weight"
    }


@pytest.mark.parametrize("kind", [AdamW, Muon])
def test_a_restored_optimizer_continues_bit_for_bit(kind: Any) -> None:
    rng = np.random.default_rng(0)
    shapes = {"model.layers.0.mlp.up_proj.weight": (3, 5), "norm.weight": (5,)}
    grads = [{name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()} for _ in range(6)]
    whole, first, second = ({name: np.ones(shape, np.float32) for name, shape in shapes.items()} for _ in range(3))
    through, before, after = kind(whole), kind(first), kind(second)
    for g in grads:
        through.step(g, 0.1)
    for g in grads[:3]:
        before.step(g, 0.1)
    after.restore({n: a.copy() for n, a in before.state().items()}, before.steps)
    for n, a in first.items():
        second[n][...] = a
    for g in grads[3:]:
        after.step(g, 0.1)
    for n, a in whole.items():
        np.testing.assert_array_equal(second[n], a)
        assert second[n].dtype == np.float32


# ---- learning rates, and the length of gradients


def test_learning_rates_at_their_corners() -> None:
    rates = [learning_rate(step, peak=2.0, steps=110, warmup=10) for step in range(111)]
    np.testing.assert_allclose(rates[:10], 0.2 * np.arange(1, 11))
    assert rates[10] == 2.0
    assert rates[60] == pytest.approx(1.1)
    assert rates[110] == pytest.approx(0.2)
    assert all(a > b for a, b in itertools.pairwise(rates[10:]))
    assert [learning_rate(step, peak=1.0, steps=4, warmup=0) for step in (0, 9)] == [1.0, pytest.approx(0.1)]
    constant = [learning_rate(step, peak=3.0, steps=9, warmup=2, schedule="constant") for step in range(9)]
    assert constant == [1.5] + 8 * [3.0]
    with pytest.raises(ValueError, match="cosine, constant"):
        learning_rate(0, peak=1.0, steps=4, warmup=0, schedule="linear")


def test_clipping_keeps_directions_and_short_gradients() -> None:
    grads = {"a": np.array([3.0]), "b": np.array([[0.0, 4.0]])}
    assert global_norm(grads) == 5.0
    shorter, norm = clip(grads, 1.0)
    assert norm == 5.0
    np.testing.assert_allclose(shorter["b"], [[0.0, 0.8]], rtol=1e-6)
    same, _ = clip(grads, 6.0)
    assert same is grads
