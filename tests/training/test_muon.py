"""Newton-Schulz against the singular values, and Muon's share of the parameters; against torch's in parity."""

from __future__ import annotations

import numpy as np
import pytest

from refdiff.training.adamw import AdamW
from refdiff.training.muon import Muon, newton_schulz
from tests.cuda.emulation import OnDevice


@pytest.mark.parametrize("shape", [(5, 13), (13, 5), (7, 7)])
def test_singular_values_come_near_one_and_vectors_stay(shape: tuple[int, int]) -> None:
    m = np.random.default_rng(0).normal(size=shape)
    u, _, vt = np.linalg.svd(m, full_matrices=False)
    inside = u.T @ newton_schulz(m) @ vt.T
    np.testing.assert_allclose(inside, np.diag(np.diag(inside)), atol=1e-12)
    assert 0.6 < np.diag(inside).min() < np.diag(inside).max() < 1.3


def test_the_length_of_a_gradient_does_not_matter() -> None:
    m = np.random.default_rng(0).normal(size=(5, 13))
    np.testing.assert_allclose(newton_schulz(1e-3 * m), newton_schulz(m), rtol=1e-10)
    assert not newton_schulz(np.zeros((3, 4))).any()


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


def test_restored_state_goes_on_bit_for_bit() -> None:
    rng = np.random.default_rng(0)
    name = "model.layers.0.mlp.up_proj.weight"
    grads = [{name: rng.normal(size=(3, 5)), "norm.weight": rng.normal(size=5)} for _ in range(6)]

    def start() -> dict[str, np.ndarray]:
        return {name: np.ones((3, 5)), "norm.weight": np.ones(5)}

    whole, first, second = start(), start(), start()
    muon, before, after = Muon(whole), Muon(first), Muon(second)
    for g in grads:
        muon.step(g, 0.1)
    for g in grads[:3]:
        before.step(g, 0.1)
    after.restore({n: a.copy() for n, a in before.state().items()}, before.steps)
    for n, a in first.items():
        second[n][...] = a
    for g in grads[3:]:
        after.step(g, 0.1)
    for n, a in whole.items():
        np.testing.assert_array_equal(second[n], a)


def test_momentum_out_of_range() -> None:
    with pytest.raises(ValueError, match=r"momentum: got 1\.0"):
        Muon({}, momentum=1.0)
