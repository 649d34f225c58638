"""Tokens chosen on the device are those that the host would choose; what the host must see goes there."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import refdiff
from refdiff.backends.cupy import device
from refdiff.backends.cupy.device import Runtime
from refdiff.backends.cupy.sampling import choose
from refdiff.generation import sampling
from tests.backends.cupy.test_model import SIZES, on_the_device
from tests.cuda.emulation import BFLOAT16, ORDERS, EmulatedDevice
from tests.layers.inputs import SEEDS, says


def on_the_host(
    logits: np.ndarray, uniforms: np.ndarray, temperature: float, top_k: int, top_p: float, min_p: float
) -> np.ndarray:
    """The distribution by the warpers of `generate`, and the draw from it."""
    scores = sampling.temperature(logits.astype(np.float64), temperature)
    if top_k:
        scores = sampling.top_k(scores, top_k)
    if top_p < 1:
        scores = sampling.top_p(scores, top_p)
    if min_p:
        scores = sampling.min_p(scores, min_p)
    return np.array([sampling.draw(sampling.softmax(row), u) for row, u in zip(scores, uniforms, strict=True)])


WARPERS = {
    "temperature": st.sampled_from([0.3, 1.0, 2.5]),
    "top_k": st.sampled_from([0, 1, 5, 1000]),
    "top_p": st.sampled_from([0.05, 0.5, 0.93, 1.0]),
    "min_p": st.sampled_from([0.0, 0.07, 1.0]),
}


@given(rng=SEEDS, size=st.sampled_from([1, 7, 97, 301]), ties=st.booleans(), order=st.sampled_from(ORDERS), **WARPERS)
def test_draws_are_the_hosts(rng: Any, size: int, ties: bool, order: int, **warpers: Any) -> None:
    logits = rng.normal(size=(3, size + 2)).astype(np.float32)[:, :size] * 3
    if ties:
        logits = np.round(logits)
    logits[0, rng.integers(size, size=size // 3)] = -np.inf
    logits[0, rng.integers(size)] = 0.5
    uniforms = rng.random(3)
    tokens = choose(Runtime(EmulatedDevice(order=order)), logits, uniforms, **warpers)
    np.testing.assert_array_equal(tokens, on_the_host(logits, uniforms, **warpers))


@given(rng=SEEDS, size=st.integers(1, 200), order=st.sampled_from(ORDERS))
def test_without_a_draw_it_is_the_first_of_the_most_likely(rng: Any, size: int, order: int) -> None:
    logits = rng.integers(-3, 4, size=(2, size)).astype(np.float32)
    logits[0, 0] = np.inf if size % 3 == 0 else -np.inf
    logits[0, -1] = max(logits[0, -1], -3)
    np.testing.assert_array_equal(choose(Runtime(EmulatedDevice(order=order)), logits), logits.argmax(axis=1))


def test_minus_zero_is_zero() -> None:
    """So the first of the two is the most likely, and top_k = 1 keeps both."""
    logits = np.array([[-0.0, 0.0, -1.0], [0.0, -0.0, -1.0], [-1.0, -2.0, -0.0]], np.float32)
    assert choose(Runtime(EmulatedDevice()), logits).tolist() == [0, 0, 2]
    uniforms = np.array([0.1, 0.9, 0.5])
    assert choose(Runtime(EmulatedDevice()), logits, uniforms, top_k=1).tolist() == [0, 1, 2]
    np.testing.assert_array_equal(on_the_host(logits, uniforms, 1.0, 1, 1.0, 0.0), [0, 1, 2])


@pytest.mark.parametrize("dtype", [np.float16, BFLOAT16])
def test_logits_of_16_bits(dtype: Any) -> None:
    rng = np.random.default_rng(0)
    logits, uniforms = (3 * rng.normal(size=(5, 97))).astype(dtype), rng.random(5)
    tokens = choose(Runtime(EmulatedDevice()), logits, uniforms, top_p=0.9)
    np.testing.assert_array_equal(tokens, on_the_host(logits.astype(np.float32), uniforms, 1.0, 0, 0.9, 0.0))


def test_logits_without_a_valid_token_give_minus_one() -> None:
    logits = np.zeros((4, 9), np.float32)
    logits[0, 3], logits[1], logits[2, 4] = np.nan, -np.inf, np.inf
    np.testing.assert_array_equal(choose(Runtime(EmulatedDevice()), logits), [-1, -1, 4, 0])
    assert choose(Runtime(EmulatedDevice()), logits, np.full(4, 0.99)).tolist() == [-1, -1, -1, 8]
    logits[0, 3] = -np.float32(np.nan)  # whose bits are below those of −inf
    logits[0, 4] = np.inf
    assert choose(Runtime(EmulatedDevice()), logits)[0] == -1


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("at(i) / temperature - top / temperature", "at(i) - top"),
        ("rank_reached_by(row, top_k, sums)", "rank_reached_by(row, top_k + 1, sums)"),
        ("(1.0 - top_p) *", "top_p *"),
        ("(reached[2] >= count)", "(reached[2] > count)"),
        ("(below[0] <= mass)", "(below[0] < 0.5 * mass)"),
        ("tie++ >= ties_kept", "false"),
        ("row.weight(i) < min_p", "row.weight(i) <= min_p"),
        ("before > goal", "before >= goal"),
        ("0u - bits : bits | 0x80000000", "bits : bits | 0x80000000"),
        ("        __syncthreads();\n        sums[threadIdx.x] += other;", "        sums[threadIdx.x] += other;"),
    ],
)
def test_a_planted_mistake_is_caught(right: str, wrong: str) -> None:
    """Of forty draws with every option, at least one is another token, or a token that is none."""
    assert right in (device.SOURCES / "choose.cu").read_text()
    rng = np.random.default_rng(5)
    logits = np.round(2 * rng.normal(size=(40, 97))).astype(np.float32)
    uniforms = np.append(rng.random(39), 0.0)
    uniforms[:20] = np.arange(20) / 20
    different = 0
    for warpers in (
        (0.5, 0, 1.0, 0.0), (1.0, 9, 1.0, 0.0), (1.0, 0, 0.7, 0.0), (1.0, 0, 1.0, np.exp(-2.0)), (1.0, 1, 1.0, 0.0),
    ):  # fmt: skip
        names = dict(zip(WARPERS, warpers, strict=True))
        there = EmulatedDevice(order=1, change=lambda text: text.replace(right, wrong))
        tokens = choose(Runtime(there), logits, uniforms, **names)
        different += (tokens != on_the_host(logits, uniforms, **names)).sum()
    assert different


GIVEN = np.random.default_rng(0).integers(3, 41, size=(3, 5))


def model(on_device: bool, dtype: str = "float32") -> tuple[Any, list[str]]:
    config = refdiff.DiffLlamaConfig(**{**SIZES, "num_hidden_layers": 1, "initializer_range": 0.6})
    made = refdiff.DiffLlamaForCausalLM.from_config(config, seed=3, dtype=dtype)
    return made, on_the_device(made).launched if on_device else []


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"eos_token_id": [1, 5, 9, 11]},
        {"do_sample": True, "seed": 5},
        {"do_sample": True, "seed": 6, "top_k": 7, "top_p": 0.8, "min_p": 0.02, "temperature": 1.5},
        {"do_sample": True, "seed": 6, "top_k": None, "eos_token_id": list(range(20))},
    ],
)
def test_text_is_that_of_the_host(options: dict[str, Any]) -> None:
    (here, _), (there, launched) = model(False), model(True)
    options = {"max_new_tokens": 6, **options}
    expected = here.generate(GIVEN, **options)
    np.testing.assert_array_equal(there.generate(GIVEN, **options), expected)
    assert launched.count("choose") == expected.shape[1] - GIVEN.shape[1]


@pytest.mark.parametrize(
    "options",
    [
        {"repetition_penalty": 1.3},
        {"do_sample": True, "seed": 5, "typical_p": 0.5},
        {"do_sample": True, "seed": 5, "num_return_sequences": 2},
        {"return_dict_in_generate": True, "output_logits": True},
    ],
)
def test_tokens_are_chosen_on_the_host_for_options_without_a_kernel(options: dict[str, Any]) -> None:
    there, launched = model(True)
    there.generate(GIVEN, max_new_tokens=2, **options)
    assert "choose" not in launched


def test_unsupported_scores_are_left_to_the_host() -> None:
    assert choose(Runtime(EmulatedDevice()), np.zeros((2, 5))) is NotImplemented
    assert choose(Runtime(EmulatedDevice()), np.zeros((2, 0), np.float32)) is NotImplemented


@pytest.mark.parametrize("sample", [False, True])
def test_invalid_scores_raise_the_same_error_as_on_the_host(sample: bool) -> None:
    for on_device in (False, True):
        broken, _ = model(on_device)
        broken.params["model"]["norm"]["weight"] = np.full(24, np.nan, np.float32)
        with says(
            ValueError,
            "scores of sequence 0, step 0: got NaN, expected numbers; check the weights, or compute in float32",
        ):
            broken.generate(GIVEN, max_new_tokens=2, do_sample=sample, seed=1 if sample else None)


@pytest.mark.parametrize("options", [{}, {"do_sample": True, "seed": 5}])
def test_float64_has_no_kernel_and_is_chosen_by_on_the_host(options: dict[str, Any]) -> None:
    (here, _), (there, launched) = model(False, "float64"), model(True, "float64")
    np.testing.assert_array_equal(
        there.generate(GIVEN, max_new_tokens=6, **options), here.generate(GIVEN, max_new_tokens=6, **options)
    )
    assert "choose" not in launched
