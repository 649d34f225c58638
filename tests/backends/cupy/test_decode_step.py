"""Replayed steps give the logits and the text of steps done one by one; where a recording would be wrong there is none.

The kernels of CUDA run on a CPU (tests/cuda). Their recorder holds every replay to what was recorded: the same
launches with the same numbers, and no answer asked for by the host.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from refdiff.backends import overlay
from refdiff.backends.cupy import CupyKernels, decode_step
from refdiff.backends.cupy.decode_step import DecodeStep
from refdiff.backends.cupy.graph import GraphError, recordable
from refdiff.generation.context import DecodingContext
from tests.backends.cupy.test_model import IDS, MASK, models, on_device_only, on_the_device, stored_models
from tests.backends.tuned import tune
from tests.cuda.emulation import EmulatedDevice, OnDevice
from tests.model.models import VARIANT_NAMES

NEW = 12
OPTIONS = {"max_new_tokens": NEW, "eos_token_id": None}
YARN = {"rope_type": "yarn", "rope_theta": 50.0, "factor": 4.0, "original_max_position_embeddings": 16}


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[DecodeStep]:
    """The steps that were made, in order; capacities are small, so that texts exceed them."""
    made: list[DecodeStep] = []
    create = DecodeStep.create

    def watched(model: Any) -> DecodeStep | None:
        tune(model.backend.kernels, min_capacity=13)
        step = create(model)
        made.extend([] if step is None else [step])
        return step

    monkeypatch.setattr(DecodeStep, "create", watched)
    monkeypatch.setattr(decode_step, "from_numpy", lambda x, xp, device: x.view(OnDevice))
    return made


def there(**config: Any) -> tuple[Any, Any]:
    """A model whose weights refuse to be looked at while a step is recorded, and its equations.

    cos and sin of yarn have a scale, which the tables of a recorded step must have too.
    """
    fast, exact = models(rope_parameters=YARN, **config)
    on_the_device(fast)
    on_device_only(fast)
    return fast, exact


@pytest.mark.parametrize(
    "variant", ["hf", *(pytest.param(w, marks=pytest.mark.slow) for w in VARIANT_NAMES if w != "hf")]
)
def test_the_text_is_that_of_the_equations(steps: list[DecodeStep], variant: str) -> None:
    fast, exact = there(variant=variant)
    for options in ({}, {"attention_mask": MASK}, {"do_sample": True, "seed": 4}):
        np.testing.assert_array_equal(
            fast.generate(IDS, **options, **OPTIONS), exact.generate(IDS, **options, **OPTIONS)
        )
    # 7 tokens, 3 usual steps, a room of 20: one recording for what is left
    assert [(step.recordings, step.refused) for step in steps] == [(1, None)] * 3


@pytest.mark.parametrize("dtype", ["float16", pytest.param("bfloat16", marks=pytest.mark.slow)])
def test_weights_of_16_bits_are_recorded_too(steps: list[DecodeStep], tmp_path: Path, dtype: str) -> None:
    fast, exact = stored_models(tmp_path, dtype)
    device = on_the_device(fast)
    on_device_only(fast)
    for options in ({"attention_mask": MASK}, {"do_sample": True, "seed": 4}):
        np.testing.assert_array_equal(
            fast.generate(IDS, **options, **OPTIONS), exact.generate(IDS, **options, **OPTIONS)
        )
    assert [(step.recordings, step.refused) for step in steps] == [(1, None)] * 2
    products = [defines for name, defines, *_ in device.trace if name in ("linear", "gated_linear")]
    assert {defines["WEIGHT"] for defines in products} == {dtype}


@pytest.mark.parametrize("options", [{"repetition_penalty": 1.3}, {"output_scores": True}])
def test_recorded_steps_return_scores_that_the_host_needs(steps: list[DecodeStep], options: dict[str, Any]) -> None:
    fast, exact = there()
    options = {**options, **OPTIONS, "return_dict_in_generate": True}
    ours, theirs = fast.generate(IDS, **options), exact.generate(IDS, **options)
    np.testing.assert_array_equal(ours.sequences, theirs.sequences)
    for one, other in zip(ours.scores or (), theirs.scores or (), strict=True):
        np.testing.assert_allclose(one, other, atol=3e-6)
    assert [step.recordings for step in steps] == [1]


def test_the_graph_is_captured_again_when_the_capacity_is_exceeded(steps: list[DecodeStep]) -> None:
    fast, exact = there()
    logits, usual = DecodingContext(fast, MASK), DecodingContext(exact, MASK)
    ids = np.random.default_rng(1).integers(3, 41, size=(2, 26))
    for total in range(7, 27):
        ours, theirs = (context.read_on_device(ids[:, :total]) for context in (logits, usual))
        np.testing.assert_allclose(ours, theirs, atol=3e-6)
        assert len(logits.cache) == logits.length == total
    assert steps[0].recordings == 2  # rooms of 20 and 40
    recorded = steps[0]._recorded
    assert recorded.replays == 26 - 20


def test_reorder_captures_the_graph_again_and_crop_does_not(
    steps: list[DecodeStep],
) -> None:
    fast, exact = there()
    ours, theirs = DecodingContext(fast, MASK), DecodingContext(exact, MASK)
    ids = np.random.default_rng(1).integers(3, 41, size=(2, 20))

    def read(rows: list[int], totals: range) -> None:
        for total in totals:
            a, b = (context.read_on_device(ids[rows, :total]) for context in (ours, theirs))
            np.testing.assert_allclose(a, b, atol=3e-6)

    read([0, 1], range(7, 13))
    assert steps[0].recordings == 1
    for context in (ours, theirs):
        context.crop(9)
    read([0, 1], range(10, 13))
    assert steps[0].recordings == 1
    for context in (ours, theirs):
        context.reorder(np.array([1, 0, 1]))
    read([1, 0, 1], range(13, 16))
    assert steps[0].recordings == 2


def test_a_step_that_cannot_be_captured_warns_once_and_runs_uncaptured(steps: list[DecodeStep]) -> None:
    """Seventeen rows are multiplied by cuBLAS."""
    fast, exact = there()
    many = np.tile(IDS[:1], (17, 1))
    options = {"max_new_tokens": fast.backend.kernels.runtime.tuning.usual_steps + 3, "eos_token_id": None}
    with pytest.warns(UserWarning, match="not recorded on the device, and take longer: .*cuBLAS"):
        made = fast.generate(many, **options)
    np.testing.assert_array_equal(made, exact.generate(many, **options))
    assert steps[0].refused is not None
    assert "cuBLAS" in steps[0].refused
    assert steps[0].recordings == 0


def test_wrapped_layers_disable_graph_capture() -> None:
    fast, _ = there()
    assert DecodeStep.create(fast) is not None
    fast.ops = overlay(fast.ops, lambda name, function: function)
    assert DecodeStep.create(fast) is None


def test_a_launch_with_changing_host_values_is_detected(steps: list[DecodeStep]) -> None:
    """A number of the host's in a launch, here the tokens in the cache, is not the same in the next step."""
    fast, _ = there()
    context = DecodingContext(fast, None)
    ids = np.random.default_rng(1).integers(3, 41, size=(2, 20))
    for total in range(7, 12):
        context.read_on_device(ids[:, :total])
    assert steps[0].recordings == 1
    steps[0]._recorded._recorded[0][1]["NUMBER"] = "another"
    with pytest.raises(AssertionError):
        context.read_on_device(ids[:, :12])


def test_recording_refuses_calls_without_a_kernel() -> None:
    kernels = CupyKernels(EmulatedDevice())
    steps = recordable(kernels)
    ops = steps.ops
    one = np.ones((2, 3), np.float32)
    np.testing.assert_array_equal(ops.rms_norm(one, None, 0.0), one)
    with pytest.raises(GraphError, match="rms_norm has no kernel for these shapes and types"):
        ops.rms_norm(one.astype(np.float64), None, 0.0)
    weights = {name: {"weight": np.eye(3, dtype=np.float32)} for name in ("gate_proj", "up_proj", "down_proj")}
    assert ops.swiglu(one, **weights, act="gelu").shape == (2, 3)  # of kernels of products, and steps on each number
    with pytest.raises(GraphError, match="linear"):
        ops.swiglu(one.astype(np.float64), **weights)
    with pytest.raises(GraphError, match="rope_append"):
        steps.rope_append(None, 0, *[np.ones((1, 2, 3, 4))] * 3, *[np.ones((1, 1, 3, 2))] * 2)
