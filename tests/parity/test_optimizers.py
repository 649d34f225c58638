"""A hundred steps of each optimizer against torch's, in float64, and clipping."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import pytest
import torch

from refdiff.training.adamw import AdamW
from refdiff.training.muon import Muon
from refdiff.training.schedule import clip, learning_rate

SHAPES = {"model.layers.0.w": (7, 5), "model.layers.1.w": (3, 11), "model.layers.1.norm": (5,), "lm_head.w": (6, 4)}
RNG = np.random.default_rng(7)
START = {name: RNG.normal(size=shape) for name, shape in SHAPES.items()}


def run(ours: Any, theirs: list[torch.optim.Optimizer], start: dict[str, torch.Tensor]) -> float:
    """The largest difference after a hundred steps of changing rates and gradients of changing sizes."""
    rng = np.random.default_rng(0)
    for step in range(100):
        grads = {name: 10.0 ** rng.uniform(-3, 2) * rng.normal(size=a.shape) for name, a in START.items()}
        rate = learning_rate(step, peak=0.05, steps=100, warmup=10)
        for name, p in start.items():
            p.grad = torch.from_numpy(grads[name].copy())
        norm = torch.nn.utils.clip_grad_norm_(list(start.values()), 1.0)
        clipped, mine = clip(grads, 1.0)
        assert mine == pytest.approx(float(norm), rel=1e-13)
        for optimizer in theirs:
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()
        ours.step(clipped, rate)
    return max(float(np.abs(p.detach().numpy() - PARAMS[name]).max()) for name, p in start.items())


PARAMS: dict[str, np.ndarray] = {}


@pytest.fixture
def start() -> dict[str, torch.Tensor]:
    PARAMS.clear()
    PARAMS.update({name: a.copy() for name, a in START.items()})
    return {name: torch.nn.Parameter(torch.from_numpy(a.copy())) for name, a in START.items()}


def adamw_of(start: dict[str, torch.Tensor], names: list[str], decay: float) -> torch.optim.Optimizer:
    matrices = [start[n] for n in names if start[n].ndim >= 2]
    groups = [
        {"params": matrices, "weight_decay": decay},
        {"params": [start[n] for n in names if start[n].ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, betas=(0.9, 0.95), eps=1e-8)


@pytest.mark.parametrize("decay", [0.1, 0.0])
def test_adamw(start: dict[str, torch.Tensor], decay: float) -> None:
    ours = AdamW(PARAMS, weight_decay=decay)
    assert run(ours, [adamw_of(start, list(SHAPES), decay)], start) < 1e-13


def without_bfloat16() -> Any:
    """torch's own iteration with its cast to bfloat16 taken out."""
    source = inspect.getsource(torch.optim._muon._zeropower_via_newtonschulz)
    assert source.count("grad.bfloat16()") == 1
    space = dict(vars(torch.optim._muon))
    exec(source.replace("grad.bfloat16()", "grad.double()"), space)
    return space["_zeropower_via_newtonschulz"]


def test_muon(start: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.optim._muon, "_zeropower_via_newtonschulz", without_bfloat16())
    hidden = [name for name, shape in SHAPES.items() if "layers" in name and len(shape) == 2]
    muon = torch.optim.Muon([start[n] for n in hidden], weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    others = adamw_of(start, [name for name in SHAPES if name not in hidden], 0.1)
    assert run(Muon(PARAMS), [muon, others], start) < 1e-12


def test_a_thousandth_is_seen(start: dict[str, torch.Tensor]) -> None:
    class Wrong(AdamW):
        def step(self, grads: Any, learning_rate: float) -> None:
            super().step(grads, 1.001 * learning_rate)

    assert run(Wrong(PARAMS), [adamw_of(start, list(SHAPES), 0.1)], start) > 1e-6
