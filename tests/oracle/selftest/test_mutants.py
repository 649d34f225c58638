"""The parts of the selftest: mutants, the noise of correct kernels, the names of mutants, the rules of others."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from refdiff.oracle import deviations, truth
from refdiff.oracle.cases.fixed import small_spec
from refdiff.oracle.cases.structure import Structure
from refdiff.oracle.cases.values import draw
from refdiff.oracle.diagnosis.hypotheses import of_mistake
from refdiff.oracle.diagnosis.ranking import NONE_FITS, UNIQUE, Finding, Ranking
from refdiff.oracle.inputs.validation import as_float64
from refdiff.oracle.mistakes.catalogue import Kernel
from refdiff.oracle.mistakes.in_backward import BACKWARD_MISTAKES
from refdiff.oracle.mistakes.kernel import ops_with
from refdiff.oracle.rounding import round_to
from refdiff.oracle.rounding.evaluation_order import DRAWS, HELD_OUT, MEMBERS
from refdiff.oracle.truth.attention_operands import attention_mask
from refdiff.oracle.truth.backward import backward
from tests.oracle import example_inputs
from tests.oracle.selftest import names
from tests.oracle.selftest.baseline_rules import Given, accepts
from tests.oracle.selftest.local_mistakes import KEYS, PLACES, with_a_wrong_place, with_other_keys
from tests.oracle.selftest.mutants import Mutant, way_of, with_a_row_of
from tests.oracle.selftest.noise import AT_RANDOM, ORDERS, Noise, noise
from tests.oracle.selftest.one_case import Trial
from tests.oracle.selftest.settings import Setting, settings

RNG = np.random.default_rng


@pytest.mark.slow
@pytest.mark.parametrize(("seed", "preset"), [(0, "hf_diffllama"), (1, "ms_v1")])
def test_the_main_problem(seed: int, preset: str) -> None:
    main, *others = settings(seed)
    assert main.main
    assert not any(setting.main for setting in others)
    assert main.deviations == deviations(small_spec(preset))
    trial = Trial(main, seed, "float32", "natural")
    found = [mutant for mutant, _ in trial.mutants()]
    for mutant in found:
        assert mutant.wrong
        for name, y in mutant.wrong.items():
            assert way_of(name) == mutant.way
            assert y.shape == trial.right[name].shape
            assert not np.array_equal(y, trial.right[name], equal_nan=True), mutant.name
    names = {way: {m.name for m in found if m.way == way} for way in ("forward", "backward", "lse")}
    assert len(names["forward"]) >= 60
    assert len(names["backward"]) >= 70
    of_v1 = {m.name for m in BACKWARD_MISTAKES if m.layer != "diff_lambda_v2_vjp"}
    unpadded = of_v1 - {"gradient_without_mask", "activation_for_derivative"}
    assert unpadded <= names["backward"] - names["forward"]
    assert {"maps swapped", "to the other base", "scores_not_scaled"} & names["lse"]
    assert len({m.name for m in found if m.axis == "local"}) == 14
    assert "one_row_loses_its_own_key" in names["forward"] & names["backward"] & names["lse"]


@pytest.mark.parametrize("seed", range(4))
def test_every_axis_in_every_seed(seed: int) -> None:
    found = [d for setting in settings(seed) for d in setting.deviations]
    assert {d.axis for d in found} >= {
        "pair", "gqa", "value layout", "rope kind", "rope dim", "rope base", "rope offset", "scale", "lambda_init",
        "lambda form", "output scale", "norm kind", "norm extent", "norm weight", "eps", "order", "clamp", "row sums",
        "mask align", "mask off by one", "window", "lse base", "maps", "v1 or v2", "ratio", "packed", "paged",
        "softcap",
    }  # fmt: skip
    names = Counter(d.name for d in found)
    assert set(names.values()) == {1}
    assert len(names) >= 75
    assert settings(seed)[0].structure.keys == (44, 44, 50, 50)[seed]


@pytest.mark.parametrize("preset", ["hf_diffllama", "diff_v2"])
@pytest.mark.parametrize("name", ["q", "k", "v"])
@pytest.mark.parametrize("profile", ["natural", "tiny_values", "extreme"])
def test_one_row_is_the_gradient_of_the_other_problem(preset: str, name: str, profile: str) -> None:
    spec = small_spec(preset)
    inputs = as_float64(spec, draw(spec, Structure(1, 7, 11), profile, 5))
    dout = RNG(5).normal(size=(1, spec.heads, 7, spec.out_dim))
    other = Kernel(spec.replace(scale=0.3), inputs)
    right = backward(spec, inputs, dout, ops_with(()))[name]
    exact = backward(other.spec, other.inputs, dout, ops_with(()))[name]
    found = with_a_row_of(other, dout, name, right, RNG(0))
    rows = np.any(found != right, axis=-1)
    assert rows.sum() == 1
    np.testing.assert_allclose(found[rows], exact[rows], rtol=1e-5, atol=1e-10 * np.abs(exact).max())
    np.testing.assert_array_equal(found[~rows], right[~rows])


SPEC = example_inputs.small("hf_diffllama")
X = example_inputs.draw(SPEC, T=40, S=44)
OUT = truth(SPEC, X, want=("out",)).out


@pytest.mark.parametrize("name", PLACES)
@pytest.mark.parametrize("seed", [0, 1])
def test_is_wrong_in_its_rows_alone(name: str, seed: int) -> None:
    before = OUT.copy()
    wrong = with_a_wrong_place(name, RNG(seed), OUT)
    np.testing.assert_array_equal(OUT, before)
    assert wrong.shape == OUT.shape
    rows = np.any((wrong != OUT) | np.isnan(wrong), axis=-1)
    assert rows.sum() == (2 if name == "two_rows_swapped" else 1)


@pytest.mark.parametrize(("change", "keys"), [*zip(KEYS, (1, 1, 64, SPEC.heads), strict=True)])
@pytest.mark.parametrize("seed", [0, 1])
def test_sees_other_keys_in_its_rows_alone(change: object, keys: int, seed: int) -> None:
    spec, inputs = with_other_keys(change, RNG(seed), SPEC, X)
    right, wrong = (np.broadcast_to(attention_mask(s, x), (2, 6, 40, 44)) for s, x in ((SPEC, X), (spec, inputs)))
    assert (right != wrong).sum() == 2 * keys, "in both sequences of the batch"
    rows = np.any(right != wrong, axis=-1)
    out = truth(spec, inputs, want=("out",)).out
    np.testing.assert_allclose(out[~rows], OUT[~rows], rtol=1e-12)
    assert np.all(np.any(out[rows] != OUT[rows], axis=-1))


# What is identifiable, by hand; correct kernels' log-sum-exps

Y = np.asarray([[3.0, -4.0], [1.0, 1.0]])
NOISE = Noise(np.asarray([0.1, 0.2]), np.asarray([0.15, 0.2]), 0.01)


def test_a_row_a_number_or_the_scale_whichever_is_most() -> None:
    assert NOISE.times(Y, Y) == 0
    row = Y + np.asarray([[0.1, 0.1], [0.0, 0.0]])
    assert NOISE.times(row, Y) == pytest.approx(1.0)
    number = Y + np.asarray([[0.0, 0.0], [0.0, 0.6]])
    assert NOISE.times(number, Y) == pytest.approx(3.0), "0.6 / 0.2, where the row is 0.42 / 0.2"
    assert NOISE.times(1.05 * Y, Y) == pytest.approx(5.0)
    wrong = Y.copy()
    wrong[0, 0] = np.nan
    assert NOISE.times(wrong, Y) == np.inf


def test_a_sum_is_judged_number_by_number() -> None:
    of_sum = Noise(None, np.asarray([0.1, 1.0]), 0.0)
    assert of_sum.times(np.asarray([1.3, 7.0]), np.asarray([1.0, 5.0])) == pytest.approx(3.0)


def test_noise_is_the_largest_error_of_any_run_and_no_less_than_a_rounding() -> None:
    one, two = Y + np.asarray([[0.3, 0.0], [0.0, 0.0]]), Y - [[0.0, 0.1], [0.02, 0.02]]
    found = noise(Y, [one, two], "float16", by_rows=True)
    np.testing.assert_allclose(found.rows, [0.3 / np.sqrt(2), 0.02])
    np.testing.assert_allclose(found.numbers, [0.3, 0.02])
    assert found.scale == pytest.approx(0.3 * 3 / 27, rel=1e-3)
    exact = noise(Y, [Y, Y], "float16", by_rows=True)
    np.testing.assert_allclose(exact.rows, 2.0**-11 / np.sqrt(12) * np.sqrt(np.mean(Y**2, axis=-1)), rtol=1e-3)
    lost = Y.copy()
    lost[1] = np.nan
    np.testing.assert_array_equal(
        noise(Y, [lost, one], "float16", by_rows=True).rows, noise(Y, [one], "float16", by_rows=True).rows
    )
    assert noise(Y, [one, two], "float16", by_rows=False).numbers[1, 1] == pytest.approx(0.02)


def test_no_budget_is_made_of_these_kernels() -> None:
    assert ORDERS == HELD_OUT
    assert not {*ORDERS, *AT_RANDOM} & {*MEMBERS, *DRAWS}
    assert not {order.noise for order in AT_RANDOM} & {order.noise for order in (*DRAWS, *MEMBERS)}


@pytest.mark.parametrize("base", [pytest.param("e", marks=pytest.mark.slow), "2"])
def test_log_sums_are_the_truth_but_for_roundings(base: str) -> None:
    main = settings(3)[0]
    setting = replace(main, spec=main.spec.replace(lse_base=base))
    trial = Trial(setting, 3, "bfloat16", "natural")
    exact = truth(setting.spec, trial.budget.inputs, want=("lse1", "lse2"))
    for order in (*ORDERS, *AT_RANDOM):
        found = trial.log_sums(trial.recipe, order)
        for name, y in (("lse1", exact.lse1), ("lse2", exact.lse2)):
            assert found[name].shape == y.shape
            assert np.array_equal(found[name], found[name].astype(np.float32))
            assert 0 < np.abs(found[name] - y).max() < 0.05


# Names of mutants: a right one, one of the same function, and one that is wrong


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> tuple[Setting, ...]:
    """A packed problem of some deviations, whose forward alone is tried."""
    small = next(s for s in settings(41) if s.kind == "packed")
    found = (replace(small, deviations=small.deviations[:3]),)
    monkeypatch.setattr(names, "settings", lambda seed: found)
    return found


def _answering(monkeypatch: pytest.MonkeyPatch, name: str | None) -> None:
    """Let each diagnosis be this name."""

    def answer(*args: object, **options: object) -> Ranking:
        if name is None:
            return Ranking(NONE_FITS)
        found = next(d for s in settings(41) for d in (*s.deviations, *deviations(s.spec)) if d.name == name)
        return Ranking(UNIQUE, (Finding(((of_mistake(found), 0.0),), 0.5, 1.0, fits=True),))

    monkeypatch.setattr(names, "diagnose", answer)


def test_only_another_function_is_a_wrong_name(few: tuple[Setting, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    given = few[0].deviations[0].name
    _answering(monkeypatch, given)
    found = {(m.name == given, how) for m, how, _ in names.diagnosed(41, "float32", "natural", 0, 1)}
    assert found == {(True, "unique"), (False, names.WRONG)}
    _answering(monkeypatch, None)
    assert {how for _, how, _ in names.diagnosed(41, "float32", "natural", 0, 1)} == {NONE_FITS}


def test_the_command_fails_on_a_wrong_name(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    answers = ["unique", "unique"]

    def some(*args: Any) -> Iterator[tuple[Mutant, str, str]]:
        for how in answers:
            yield Mutant("forward", "layer_norm", "norm", {}), how, "rms"

    monkeypatch.setattr(names, "diagnosed", some)
    assert names.main(["--noisy", "0", "--mistakes", "0"]) == 0
    assert capsys.readouterr().out == "32 outputs diagnosed: 32 unique; 0 had a wrong name\n"
    answers[1] = names.WRONG
    assert names.main(["--seed", "3", "--noisy", "0", "--mistakes", "0"]) == 1
    assert "seed 8003 tf32 extreme forward: layer_norm was called rms\n" in capsys.readouterr().out


def test_an_output_without_a_name(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    _answering(monkeypatch, None)
    assert names.main(["--seeds", "0", "--noisy", "1", "--mistakes", "2"]) == 0
    _answering(monkeypatch, "maps_swapped")
    assert names.main(["--seeds", "0", "--noisy", "1", "--mistakes", "2"]) == 1
    assert " ms_v1 was called maps_swapped\n" in capsys.readouterr().out


# The rules of others, by hand: what each accepts, and what is a little more

Z = np.random.default_rng(0).normal(size=(1, 2, 5, 8))


def _accepts(rule: str, out: np.ndarray, right: np.ndarray, storage: str = "float32", eager_error: float = 0.0) -> bool:
    eager = right.copy()
    eager.flat[0] += eager_error
    return accepts(rule, {"out": out}, {"out": Given(right, eager, storage)})


def test_flash_allows_twice_the_largest_error_of_the_eager_run() -> None:
    out = round_to(Z, "float32")
    assert _accepts("flash 2x", out + 0.0199, Z, eager_error=0.01), "anywhere, in every row"
    out[0, 1, 4, 7] += 0.0201
    assert not _accepts("flash 2x", out, Z, eager_error=0.01)


@pytest.mark.parametrize(("storage", "factor"), [("float32", 10), ("bfloat16", 1.1)])
def test_flex_allows_a_factor_of_the_mean_error(storage: str, factor: float) -> None:
    for error, accepted in ((0.0099, True), (0.0101, False)):  # eager: 0.01 in the mean of 80 numbers
        assert _accepts("flex mean", Z + error * factor, Z, storage, 0.8) == accepted


@pytest.mark.parametrize(
    ("rule", "tolerances"),
    [
        ("assert_close", [(1e-5, 1.3e-6), (1e-5, 1.6e-2), (1e-5, 1e-3)]),
        ("gpuemu", [(1e-5, 0), (1e-3, 0), (1e-3, 0)]),
    ],
)
def test_fixed_tolerances(rule: str, tolerances: list[tuple[float, float]]) -> None:
    for storage, (atol, rtol) in zip(("float32", "bfloat16", "float16"), tolerances, strict=True):
        ref = round_to(Z, storage)
        assert _accepts(rule, ref - 0.999 * (atol + rtol * np.abs(ref)), Z, storage)
        out = ref.copy()
        out[0, 1, 3, 4] += 1.001 * (atol + rtol * np.abs(out[0, 1, 3, 4]))
        assert not _accepts(rule, out, Z, storage)


@pytest.mark.parametrize(
    ("rule", "right", "error", "accepted"),
    [
        ("flashinfer", (0.5, 20.0), (0.0099, 0.199), True),  # the first by 2 %, the second by 0.2
        ("flashinfer", (0.5, 20.0), (0.0101, 0.0), False),
        ("flashinfer", (0.5, 20.0), (0.0, 0.201), False),
        ("nmse 5e-4", (3.0, 4.0), (0.0, 0.11), True),  # it divides by the square of the result: 0.0121 / 25.9
        ("nmse 5e-4", (3.0, 4.0), (0.0, -0.11), False),  # 0.0121 / 24.1 = 5.02e-4
    ],
)
def test_small_in_another_way(rule: str, right: tuple[float, ...], error: tuple[float, ...], accepted: bool) -> None:
    assert _accepts(rule, np.add(right, error), np.array(right)) == accepted


def test_the_correlation_sees_no_scale_and_no_offset() -> None:
    noise = np.random.default_rng(1).normal(size=Z.shape)
    for out, accepted in ((7 * Z + 3, True), (-Z, False), (np.zeros_like(Z), False), (Z + 0.03 * noise, True),
                          (Z + 0.06 * noise, False), (np.ones_like(Z), True)):  # fmt: skip
        assert _accepts("pcc 0.999", out, Z) == accepted  # of ones it is undefined, which comp_pcc accepts
