"""The selftest's cases by the right checker and by wrong ones, its page, mutants, noise, names and other rules."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from refdiff.oracle import Budget, Recipe, deviations, truth
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
from refdiff.oracle.rounding.ensemble import evaluate
from refdiff.oracle.rounding.evaluation_order import DRAWS, HELD_OUT, MEMBERS
from refdiff.oracle.thresholds import RowLimits
from refdiff.oracle.truth.attention_operands import attention_mask
from refdiff.oracle.truth.backward import backward
from refdiff.oracle.verdict.verdict import Verdict
from tests.oracle import example_inputs
from tests.oracle.selftest import __main__ as command
from tests.oracle.selftest import names
from tests.oracle.selftest.baseline_rules import Given, accepts
from tests.oracle.selftest.mutants import (
    KEYS,
    PLACES,
    Mutant,
    way_of,
    with_a_row_of,
    with_a_wrong_place,
    with_other_keys,
)
from tests.oracle.selftest.noise import AT_RANDOM, ORDERS, Noise, noise
from tests.oracle.selftest.one_case import OURS, Run, Trial, runs_of_mutants, runs_of_real_kernels
from tests.oracle.selftest.page import is_identifiable, page
from tests.oracle.selftest.settings import Setting, settings

ROOT = Path(__file__).parents[3]


def few(seed: int, plain: bool = False) -> tuple[Setting, ...]:
    """Of the main problem every fourth deviation, and of the others none."""
    main = settings(seed, plain=plain)[0]
    return (replace(main, deviations=main.deviations[1::4]),)


def judge_by(monkeypatch: pytest.MonkeyPatch, limits: RowLimits) -> None:
    """Let all budgets judge rows by these limits."""
    judge = Budget.judge

    def judged(self: Budget, actual: Any) -> Verdict:
        tensors = {name: replace(rows, limits=limits) for name, rows in self.tensors.items()}
        return judge(replace(self, tensors=tensors), actual)

    monkeypatch.setattr(Budget, "judge", judged)


@pytest.mark.slow
@pytest.mark.parametrize("plain", [False, True])
def test_a_case_has_all_kinds_of_mutants_and_correct_kernels(plain: bool) -> None:
    runs = list(runs_of_mutants(41, "bfloat16", "tiny_values", few(41, plain)))
    assert command.holds(runs, 0.97)
    assert all(run.seed == 41 and run.kind in ("mutant", "own") for run in runs)
    for way, least in (("forward", 15), ("backward", 20), ("lse", 8)):
        assert sum(run.kind == "own" for run in runs if run.way == way) == 5
        assert len({run.name for run in runs if run.way == way and is_identifiable(run)}) >= least
    assert len({run.name for run in runs if run.axis == "local" and run.way == "forward"}) == 14
    correct = [run for run in runs if run.kind == "own"]
    assert any("assert_close" in run.refused_by for run in correct), "a rule that refuses correct kernels is seen to"


def test_a_tester_that_lets_pass_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    judge_by(monkeypatch, RowLimits(row=1e9, bulk=1e9, slope=1e9))
    runs = list(runs_of_mutants(43, "float16", "natural", few(43)))
    assert not command.holds(runs, 0.9), "the masks and the sums are left"
    assert "## Identifiable mutants that passed" in page(runs, [43])


def test_a_tester_that_refuses_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    judge_by(monkeypatch, RowLimits(row=0.1, bulk=0.1))
    main = replace(settings(44)[0], deviations=())
    runs = list(runs_of_mutants(44, "float16", "natural", (main,)))
    refused = [run for run in runs if run.verdict]
    assert len(refused) == 10, "log-sum-exps have another rule"
    assert all(run.verdict.startswith("fail") and run.kind == "own" for run in refused)
    assert not command.holds(runs, 0.5)


def correct(spec: Any, inputs: Any, dout: Any, dtype: str) -> Any:
    return evaluate(spec, inputs, Recipe(dtype), HELD_OUT[0], dout)


def wrong(spec: Any, inputs: Any, dout: Any, dtype: str) -> Any:
    found = correct(spec, inputs, dout, dtype)
    return {"out": found["out"], "dq": np.roll(found["dq"], 1, axis=2)}


def test_wrong_kernels_of_others_are_refused() -> None:
    kernels = {"correct": ("hf_diffllama", False, correct), "wrong": ("ms_v1", False, wrong)}
    runs = list(runs_of_real_kernels(7, "float16", "natural", kernels))
    assert [(run.name, run.way, bool(run.verdict)) for run in runs] == [
        ("correct", "forward", False), ("correct", "backward", False), ("wrong", "forward", False),
        ("wrong", "backward", True),
    ]  # fmt: skip
    assert 0.5 < runs[0].off[0] <= 1.0, "it is one of those that noise is made of"
    assert max(runs[-1].off) > 100


def _mutants(n: int, status: str, off: float = 30.0, **fields: Any) -> list[Run]:
    refused_by = frozenset({OURS, "flex mean"} if status == "fail" else ())
    given = {"axis": "scale", "name": "scores_not_scaled", **fields}
    return n * [Run(7, "float32", "natural", "forward", "mutant", status=status, refused_by=refused_by,
                    off=(off, off / 4), **given)]  # fmt: skip


def _correct(n: int, kind: str, name: str, status: str = "pass", *refused_by: str, off: float = 1.5) -> list[Run]:
    return n * [Run(7, "float32", "natural", "forward", kind, name, status, frozenset(refused_by), off=(off,))]


def test_every_number_in_its_cell() -> None:
    runs = [*_mutants(239, "fail"), *_mutants(1, "pass", 7.0, axis="local", name="one_nan"), *_mutants(9, "fail", 4.0)]
    runs += [*_mutants(51, "pass", 4.0), *_correct(43, "own", "blas"), *_correct(7, "own", "blas", "inconclusive")]
    runs += [*_correct(16, "real", "torch"), *_correct(4, "real", "torch", "pass", "flex mean", off=3.0)]
    assert command.holds(runs, 0.995)
    assert not command.holds(runs, 0.996)
    assert not command.holds([*runs, *_correct(1, "real", "torch", "fail", OURS)], 0.9)
    assert not command.holds(_correct(5, "own", "blas"), 0.9), "nothing was identifiable"
    assert [command.least_killed(n, plain=False) for n in (1, 19, 20)] == [0.98, 0.98, 0.992]
    text = page(runs, range(7, 10), "--seeds 3")
    assert "\n    python -m tests.oracle.selftest --seeds 3\n" in text
    assert "and 1 mistakes in one place; seeds 7 to 9, on which nothing was tuned; types float32;" in text
    assert "identifiable mutants are killed. Of the 1 that are not, 0 were inconclusive." in text
    assert "errors of correct kernels, 100.0 % of 239 are killed." in text
    for line in (
        "| rows | 239 of 240 (99.6 %) | 82.7 % of 300 | 0 of 50 | 0 of 20 | 7 |",
        "| flex mean | 239 of 240 (99.6 %) | 82.7 % of 300 | 0 of 50 | 4 of 20 (20.0 %) | - |",
        "| float32 | natural | 240 | 99.6 | 0.0 | 0.0 | 0.0 | 0.0 | 99.6 | 0.0 | 0.0 | 0.0 | 0.0 | 0.0 |",
        "| float32 | natural | 50 | 20 | 7 | 0 | 0 | 0 | 0 | 0 | 4 | 0 | 0 | 0 | 0 | 0 |",
        "| torch | float32 | 1.5, at most 3 | - | - |",
        "| scale | scores_not_scaled | 239/239, 1 | - | - |",
        "| local | one_nan | 0/1, 1 | - | - |",
        "| 1 | one_nan | float32 | forward |",
    ):
        assert line in text.split("\n"), line


@pytest.mark.nightly
@pytest.mark.parametrize("plain", [False, True])
def test_a_sample(plain: bool, capsys: pytest.CaptureFixture[str]) -> None:
    """All recipes and profiles on a seed that the table in the documentation has not."""
    assert command.main(["--first-seed", "2026", *(["--plain"] if plain else [])]) == 0, capsys.readouterr().out


@pytest.mark.slow
def test_the_command_runs_in_two_processes() -> None:
    words = [sys.executable, "-m", "tests.oracle.selftest", "--jobs", "2", "--recipes", "float32"]
    done = subprocess.run([*words, "--profiles", "natural,tiny_values"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("# Selftest of the oracle\n")


# The parts of the selftest: mutants, the noise of correct kernels, the names of mutants, the rules of others

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
def some_settings(monkeypatch: pytest.MonkeyPatch) -> tuple[Setting, ...]:
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


def test_only_another_function_is_a_wrong_name(
    some_settings: tuple[Setting, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    given = some_settings[0].deviations[0].name
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
