"""No correct kernel is refused: five presets, four kernels, two types, one seed; the nightly run has five."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from refdiff.oracle.judge import judge_file
from refdiff.oracle.spec import Spec

HONEST = Path(__file__).parent / "kernels" / "honest.py"
PRESETS = ("hf_diffllama", "ms_v1", "timm", "phi4flash", "motif")
FUNCTIONS = ("kernel", "tiled", "in_float32", "as_modules_return_it")
RUNS = list(itertools.product(range(5), PRESETS, FUNCTIONS, ("float32", "bfloat16")))


@pytest.mark.parametrize(
    ("seed", "preset", "function", "recipe"),
    [pytest.param(*run, marks=pytest.mark.nightly if run[0] else pytest.mark.slow) for run in RUNS],
)
def test_a_correct_kernel_passes(seed: int, preset: str, function: str, recipe: str) -> None:
    key_heads = 4 if preset == "timm" else 2
    spec = Spec.preset(preset, query_heads=4, key_heads=key_heads, head_dim=4, layer=1)
    profiles = ["natural", "discriminating", "tiny_values"]
    report = judge_file(HONEST, spec, recipe=recipe, function=function, profiles=profiles, seed=9000 + seed)
    assert report, str(report)
    assert sum(outcome.compared for outcome in report.cases.values()) >= 8


def test_there_are_two_hundred() -> None:
    assert len(RUNS) == 200
