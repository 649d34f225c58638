"""Large cases, of which parts are tried first: the names are right all the same."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import lru_cache

import numpy as np
import pytest

from refdiff.backends import ops_for
from refdiff.oracle import Case, Ranking, Spec, blind_spots, deviations, diagnose
from refdiff.oracle.budget.budget import budget
from refdiff.oracle.deviations.deviation import Problem, output_with
from refdiff.oracle.deviations.rare import RARE_DEVIATIONS
from refdiff.oracle.diagnosis import fits, targets
from refdiff.oracle.diagnosis.ranking import AMBIGUOUS, NO_DEVIATION, NONE_FITS, UNIQUE
from refdiff.oracle.diagnosis.search import NO_LARGE_PAIRS, search
from refdiff.oracle.diagnosis.targets import Parts, Rejected, Target, failing_part, judge_problem
from refdiff.oracle.inputs.validation import as_float64
from refdiff.oracle.rounding.recipe import Recipe
from refdiff.oracle.strategies import Structure
from refdiff.oracle.truth.forward import forward
from tests.oracle.diagnosis.outputs import kernel, natural

SPEC = Spec.preset("hf_diffllama", query_heads=8, key_heads=4, head_dim=16, layer=3)
T = 150
ALIKE = (
    {"exp2_for_exp", "scores_scaled_by_sqrt_2d"},
    {"epsilon_1e-6", "no_epsilon"},
)
"""Deviations that `case()` does not tell apart in bfloat16."""


@lru_cache(maxsize=4)
def case(dtype: str = "bfloat16", queries: int = T, keys: int = T, profile: str = "natural") -> Case:
    return natural(SPEC, Structure(1, queries, keys), dtype, profile)


def wrong(*names: str, of: Case) -> np.ndarray:
    return kernel(of, [d for d in deviations(SPEC) if d.name in names])


def ask(out: np.ndarray, of: Case, most: int = 2) -> Ranking:
    return diagnose(out, of.spec, of.inputs, recipe=of.dtype, max_deviations=most)


@pytest.mark.parametrize("value", [0.0, np.nan, 1.5])
def test_one_tile_that_is_wrong(value: float) -> None:
    out = wrong(of=case())
    out[0, 3, 64:96] = value if value != 1.5 else value * out[0, 3, 64:96]
    found = ask(out, case())
    assert found.status == NONE_FITS
    assert "in tokens 64 to 95 of head 3" in found.where[0]
    assert not found.fits
    assert not found.candidates


@pytest.mark.parametrize("name", ["layer_norm", "one_future_key_visible"])
def test_one_name(name: str) -> None:
    found = ask(wrong(name, of=case()), case(), most=1)
    assert (found.status, found.name) == (UNIQUE, name)


@pytest.mark.parametrize("preset", ["timm", "attention"])
def test_a_causal_mask_where_the_spec_has_none(preset: str) -> None:
    """The last queries alone, with all keys, have another mask by the same mistake: it is tried on the whole."""
    spec = Spec.preset(preset, query_heads=4, key_heads=4, head_dim=8, causal="none")
    of = natural(spec, Structure(1, 128, 128), "bfloat16", "discriminating")
    out = kernel(of, [d for d in deviations(spec) if d.name == "extra_causal_mask"])
    assert out is not None
    assert ask(out, of).name == "extra_causal_mask"


V2 = Spec.preset("diff_v2", query_heads=8, key_heads=2, head_dim=8)


def test_one_lambda_for_all_tokens() -> None:
    """On a part it is another number."""
    of = natural(V2, Structure(1, T, T), "bfloat16", "discriminating")
    out = kernel(of, [d for d in deviations(V2) if d.name == "v2_one_lambda_per_layer"])
    assert out is not None
    assert ask(out, of).name == "v2_one_lambda_per_layer"


@pytest.mark.parametrize("spec", [SPEC, V2, SPEC.replace(causal="none"), SPEC.replace(sinks=True, window=9)])
@pytest.mark.parametrize("keys", [T, T + 20])
def test_a_deviation_acts_on_the_parts_where_it_is_tried_as_on_the_whole(spec: Spec, keys: int) -> None:
    x = as_float64(spec, natural(spec, Structure(1, T, keys), "float32", "discriminating").inputs)
    right = forward(spec, x, ops_for())
    parts = Parts.of(spec, (Target(x, right, right, np.ones(right.shape[:-1]), Recipe.of("float32")),))
    tried = 0
    for d in (*deviations(spec), *RARE_DEVIATIONS):
        (part,) = parts.select((d,))
        whole, out = (output_with(spec, inputs, (d,)) for inputs in (x, part.inputs))
        if part is parts.whole[0] or whole is None or out is None:
            continue
        n = out.shape[2]
        is_first = np.array_equal(part.expected, right[:, :, :n])
        np.testing.assert_allclose(out, whole[:, :, :n] if is_first else whole[:, :, -n:], rtol=1e-5, atol=1e-8,
                                   err_msg=d.name)  # fmt: skip
        tried += 1
    assert tried > 60


@pytest.mark.slow
@pytest.mark.parametrize("factor", [0.7, 1.05])
def test_no_pairs_are_tried_for_a_factor(factor: float) -> None:
    found = ask(factor * wrong(of=case()), case())
    assert (found.status, found.fits[0].parameter) == (NONE_FITS, "factor")
    assert not any("pairs" in note for note in found.notes)


@pytest.mark.slow
def test_no_pairs_are_tried_if_lost_keys_explain_all_outputs() -> None:
    inputs, seen = case().inputs, np.arange(T)[None] != 60
    lost = kernel(replace(case(), inputs={**inputs, "key_mask": seen}), [])
    noise = lost + np.random.default_rng(0).normal(size=lost.shape) * np.abs(lost).mean()
    of_one, of_both = ask(lost, case()), diagnose([lost, noise], SPEC, [inputs, inputs], recipe="bfloat16")
    for found, said in ((of_one, "alone,"), (of_both, "alone or in pairs,")):
        assert found.status == NONE_FITS
        assert any("it is as if key 60 was not seen" in line for line in found.where)
        assert f"nothing in the catalogue, {said}" in str(found)


@pytest.mark.parametrize("mask", ["own_key_masked", pytest.param("one_future_key_visible", marks=pytest.mark.slow)])
def test_a_pair_with_a_mask_is_named_although_lost_keys_explain_some_rows(mask: str) -> None:
    of = natural(SPEC, Structure(1, 60, 60), "bfloat16", "discriminating")
    found = ask(wrong(mask, "one_added_to_denominator", of=of), of)
    assert found.status == UNIQUE
    assert set(found.name.split(" + ")) == {mask, "one_added_to_denominator"}


def target_of(out: np.ndarray) -> Target:
    return Target.of(np.float64(out), budget(SPEC, case().inputs, Recipe.of("bfloat16")))


def with_epsilon(epsilon: float) -> np.ndarray:
    out = output_with(SPEC.replace(norm_eps=epsilon), as_float64(SPEC, case().inputs), ())
    assert out is not None
    return out


@pytest.mark.slow
def test_no_pairs_are_tried_for_an_error_that_no_row_shows() -> None:
    target = target_of(with_epsilon(2e-4))
    assert target.fails_as_tensor
    found = search(SPEC, Parts.of(SPEC, (target,)), deviations(SPEC), 2)
    assert found.notes == (NO_LARGE_PAIRS,)
    assert not found.tried_pairs


def test_an_error_that_no_row_shows_is_looked_for_in_the_smallest_part_that_shows_it() -> None:
    clear, faint = (Parts.of(SPEC, (target_of(with_epsilon(epsilon)),)) for epsilon in (4e-4, 5e-5))
    for parts in (clear, faint):
        assert all(part.fails_as_tensor for part in (*parts.whole, *parts.local, *parts.all_keys))
    sizes = [part.inputs["q"].shape[2] for parts in (clear, faint) for part in parts.local]
    assert sizes[0] < sizes[1] <= T
    assert [part.inputs["k"].shape[2] for part in clear.all_keys] == [T]


def test_a_part_has_the_inputs_of_the_whole() -> None:
    """Beside q in 16 bits, k and v may be float32: of a cache of 8 bits."""
    x = {**natural(SPEC, Structure(1, T, T), "float32").inputs, "q": case().inputs["q"]}
    exact = budget(SPEC, x, Recipe.of("bfloat16"))
    whole = Target.of(1.004 * exact.expected["out"], exact)
    part = failing_part(SPEC, whole)
    assert part is not None
    n = part.actual.shape[2]
    assert n < T
    np.testing.assert_array_equal(part.inputs["k"], whole.inputs["k"][:, :, :n])
    np.testing.assert_allclose(part.expected, whole.expected[:, :, :n], rtol=1e-12)


def test_an_epsilon_that_no_row_shows_is_found() -> None:
    found = ask(with_epsilon(2e-4), case(), most=1)
    assert [(f.parameter, f"{f.value:.3g}") for f in found.fits] == [("norm_eps", "0.0002")]


def test_a_number_that_no_row_shows_is_searched_on_a_part_first(monkeypatch: pytest.MonkeyPatch) -> None:
    parts = Parts.of(SPEC, (target_of(with_epsilon(4e-4)),))
    tried: list[tuple[Target, ...]] = []
    compute = fits.compute_outputs
    monkeypatch.setattr(fits, "compute_outputs", lambda kernel, on: tried.append(on) or compute(kernel, on))
    (found,) = fits.fit_parameters(SPEC, parts)
    assert (found.parameter, f"{found.value:.3g}") == ("norm_eps", "0.0004")
    assert 0 < 2 * tried.count(parts.whole) < tried.count(parts.all_keys)


def test_of_two_wrong_rows_the_parts_have_the_one_that_makes_them_small() -> None:
    """A causal part ends at the first, and a part with all keys begins at the last."""
    out = wrong(of=case()).copy()
    out[:, :, [60, 140]] *= 2
    parts = Parts.of(SPEC, (target_of(out),))
    assert parts.local[-1].inputs["k"].shape[2] == 61
    assert [part.inputs["q"].shape[2] for part in parts.all_keys] == [T - 140]


def test_one_output_is_rejected_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second problem with the same output is run in the screening orders alone."""
    runs: list[object] = []
    rounded = targets._rounded_output
    monkeypatch.setattr(targets, "_rounded_output", lambda *some: runs.append(some) or rounded(*some))
    target, rejected = target_of(1.05 * wrong(of=case())), Rejected()
    problem = Problem(SPEC, target.inputs)
    first = judge_problem(problem, target, stop=True, rejected=rejected)
    before = len(runs)
    again = judge_problem(problem, target, stop=True, rejected=rejected)
    assert (before, len(runs) - before) == (len((*targets.DRAWS, *targets.MEMBERS[:3])), len(targets.SCREENING_ORDERS))
    assert not first.fits
    assert (again.fits, again.residual) == (False, first.residual)
    other = judge_problem(Problem(SPEC.replace(norm_eps=1e-2), target.inputs), target, stop=True, rejected=rejected)
    assert other.residual != first.residual


@pytest.mark.slow
def test_a_right_output_and_what_it_could_not_show() -> None:
    found = ask(wrong(of=case()), case())
    assert found.status == NO_DEVIATION
    hidden = {d.name for d in blind_spots(SPEC, case().inputs, "bfloat16")}
    (note,) = found.notes
    said = re.fullmatch(r"these inputs could not show (\d+) deviations: (.+)", note)
    names = said[2].split(", ")
    assert len(names) == int(said[1])
    assert set(names) == hidden


@pytest.mark.slow
def test_a_pair_of_which_one_acts_in_another_sequence_is_named() -> None:
    """The part that is tried is of the first sequence, and the second is padded."""
    inputs = {**natural(SPEC, Structure(2, T, T), "float32").inputs, "key_mask": np.arange(T) >= np.array([[0], [40]])}
    both = [d for d in deviations(SPEC) if d.name in ("layer_norm", "no_padding_mask")]
    out = output_with(SPEC, inputs, both)
    assert out is not None
    assert set(str(diagnose(np.float32(out), SPEC, inputs, recipe="float32").name).split(" + ")) == {
        d.name for d in both
    }


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [pytest.param("float32", marks=pytest.mark.nightly), "bfloat16"])
def test_two_together_are_named(dtype: str) -> None:
    for names in (("layer_norm", "no_output_scale"), ("keys_swapped", "one_future_key_visible")):
        found = ask(wrong(*names, of=case(dtype)), case(dtype))
        assert found.status == UNIQUE
        assert {d.name for d in found.candidates[0].deviations} == set(names)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dtype", "keys", "profile", "every"),
    [
        ("bfloat16", T, "natural", 4),
        pytest.param("bfloat16", T, "natural", 1, marks=pytest.mark.nightly),
        pytest.param("float32", T + 20, "discriminating", 1, marks=pytest.mark.nightly),
    ],
)
def test_all_singles_are_named(dtype: str, keys: int, profile: str, every: int) -> None:
    """Or they are hidden. Another name is given beside the right one only, with a separating case.

    In bfloat16 such pairs are 2^z for e^z, which scales scores by 0.69, and the scale 1/√2d, by 0.71; and two values of
    ε, 10⁻⁶ and 0, where 10⁻⁵ is meant.
    """
    of = case(dtype, T, keys, profile)
    hidden = {d.name for d in blind_spots(SPEC, of.inputs, dtype)}
    answers = {}
    for n, d in list(enumerate(deviations(SPEC)))[::every]:
        out = kernel(of, [d], n)
        if out is not None and np.any(out):  # zeros have no name
            answers[d.name] = ask(out, of, most=1)
    assert len(answers) > 50 // every
    unnamed = {name: found for name, found in answers.items() if found.name != name}
    several = {name: found for name, found in unnamed.items() if found.status == AMBIGUOUS}
    for name, found in several.items():
        assert name in {candidate.name for candidate in found.candidates}, found
        assert found.separating, found
        assert {candidate.name for candidate in found.candidates} in ALIKE
    unseen = {name: found.status for name, found in unnamed.items() if name not in several}
    assert set(unseen.values()) <= {NO_DEVIATION}, unseen
    assert set(unseen) <= hidden
