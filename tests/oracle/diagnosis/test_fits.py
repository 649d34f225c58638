"""Numbers that no name has are fitted, and the output then passes: of the spec, of a layer, λ and factors by head."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest

from refdiff.layers import lambda_init
from refdiff.oracle import Spec, budget, diagnose, truth
from refdiff.oracle.cases.fixed import small_spec
from refdiff.oracle.deviations.deviation import Problem
from refdiff.oracle.diagnosis.fit_lambda import LAYER, LAYER_OF_LAMBDA, LAYER_OF_SCALE, fit_lambda
from refdiff.oracle.diagnosis.fits import fit_parameters, minimize
from refdiff.oracle.diagnosis.parameter_fit import MAX_LISTED, Trial, evaluate, format_list
from refdiff.oracle.diagnosis.ranking import Fit
from refdiff.oracle.diagnosis.targets import Parts, Target, exceeds_limit, row_ratios
from refdiff.oracle.inputs import VECTORS
from refdiff.oracle.rounding import round_to
from refdiff.oracle.strategies import Structure, draw
from tests.oracle.diagnosis.outputs import by_weights

SPEC = small_spec("hf_diffllama")
Kernel = Callable[[dict[str, Any]], Any]


def target(kernel: Kernel, spec: Spec = SPEC, *, structure: Structure | None = None, values: str = "discriminating",
           seed: int = 3, dtype: str = "float32", members: int = 6) -> Target:  # fmt: skip
    """The output of a kernel, rounded to its type, and what a right one may be off by."""
    inputs = draw(spec, structure or Structure(1, 9, 12), values, seed, dtype)
    return Target.of(round_to(kernel(inputs), dtype), budget(spec, inputs, dtype, members=members))


def of(spec: Spec, by: Any = 1.0) -> Kernel:
    """A kernel of a spec, multiplied."""
    return lambda inputs: by * truth(spec, inputs).out


def fit_one(spec: Spec, one: Target) -> tuple[Fit, ...]:
    return fit_parameters(spec, Parts.of(spec, (one,)))


# numbers of the spec

LIMIT = 2.5


def limited(limit: str) -> Kernel:
    """A kernel whose scores have a limit, from the maps' definition."""

    def weights(*scores: Any) -> list[Any]:
        limits = (LIMIT * np.tanh(z / LIMIT) if limit == "smooth" else np.clip(z, -LIMIT, LIMIT) for z in scores)
        e = [np.where(np.isneginf(z), 0.0, np.exp(x)) for x, z in zip(limits, scores, strict=True)]
        return [x / x.sum(axis=-1, keepdims=True) for x in e]

    return lambda inputs: by_weights(SPEC, inputs, weights)


@pytest.mark.parametrize(("share", "at", "said"), [(0.25, "first", "first 4"), (0.5, "last", "last 8")])
def test_the_share_that_rope_rotates_is_found(share: float, at: str, said: str) -> None:
    t = target(of(SPEC.replace(partial_rotary_factor=share, rotary_at=at)))
    found = diagnose(t.actual, SPEC, t.inputs, recipe="float32", max_deviations=1)
    text = f"RoPE rotates the {said} dimensions of each head, where the spec rotates all of each head"
    assert [(f.parameter, f.value, f.text) for f in found.fits] == [("partial_rotary_factor", (share, at), text)]


@pytest.mark.parametrize(
    ("field", "value", "values"),
    [
        *(("scale", 0.31, "discriminating"), ("norm_eps", 3e-7, "tiny_values")),
        *(("rope_theta", 700.0, "discriminating"), ("window", 5, "discriminating")),
    ],
)
def test_a_number_is_found(field: str, value: float, values: str) -> None:
    found = {f.parameter: f for f in fit_one(SPEC, target(of(SPEC.replace(**{field: value})), values=values))}
    assert found[field].fits
    assert found[field].value == pytest.approx(value, rel=1e-3)
    assert f"{value:.3g}"[:4] in found[field].text
    assert "where the spec has " in found[field].text


@pytest.mark.parametrize("dtype", [pytest.param("float32", marks=pytest.mark.slow), "bfloat16"])
@pytest.mark.parametrize(("limit", "name"), [("smooth", "softcap"), ("sharp", "score_limit")])
def test_a_limit_of_scores_is_found(limit: str, name: str, dtype: str) -> None:
    """Neither is right where the other is."""
    (found,) = (f for f in fit_one(SPEC, target(limited(limit), dtype=dtype)) if f.fits)
    assert (found.parameter, found.value) == (name, pytest.approx(LIMIT, rel=0.02))
    assert "where the spec has no" in found.text


def test_a_number_that_explains_nearly_all_is_shown_as_one_that_does_not_pass() -> None:
    """Noise of 5 % on an output of another scale of the scores: no kernel of that scale, but near it."""
    t = target(of(SPEC.replace(scale=0.31)))
    apart = np.sqrt(np.mean((t.actual - t.expected) ** 2))
    noise = np.random.default_rng(0).normal(size=t.actual.shape)
    (found,) = fit_one(SPEC, replace(t, actual=t.actual + 0.05 * apart * noise))
    assert (found.parameter, found.fits) == ("scale", False)
    assert found.value == pytest.approx(0.31, rel=0.02)
    assert 0.99 < found.explains < 1
    assert "(does not pass: explains 99." in str(found)
    assert fit_one(SPEC, replace(t, actual=t.actual + 0.2 * apart * noise)) == ()


def test_no_number_is_fitted_to_noise() -> None:
    """As of float32 products by three bfloat16 products. A softcap of 500 was, whose own errors are larger."""
    rng = np.random.default_rng(0)
    t = target(lambda inputs: (y := truth(SPEC, inputs).out) * (1 + 2.0**-17 * rng.normal(size=y.shape)))
    assert exceeds_limit(row_ratios(t, t.actual))
    assert fit_one(SPEC, t) == ()


def test_heads_in_another_order() -> None:
    order = [2, 0, 1, 5, 4, 3]
    found = {f.parameter: f for f in fit_one(SPEC, target(lambda x: truth(SPEC, x).out[:, order]))}
    assert found["heads"].value == order
    assert "(2, 0, 1, 5, 4, 3)" in found["heads"].text


@pytest.mark.parametrize("by", [2, -2])
def test_queries_rotated_from_another_position(by: int) -> None:
    def kernel(x: dict[str, np.ndarray]) -> np.ndarray:
        T, S = x["q"].shape[2], x["k"].shape[2]
        return truth(SPEC, {**x, "q_positions": np.arange(S - T, S)[None] + by}).out

    (found,) = (f for f in fit_one(SPEC, target(kernel)) if f.fits)
    assert (found.parameter, found.value) == ("q_offset", by)
    assert found.text.startswith(f"queries are rotated by their position {by:+d},")


# factors


@pytest.mark.parametrize("name", ["hf_diffllama", "ms_v1", "diff_v2"])
@pytest.mark.parametrize("dtype", ["bfloat16", pytest.param("float32", marks=pytest.mark.slow)])
def test_a_factor_by_head_is_found(name: str, dtype: str) -> None:
    """Of all heads, and of two where the rest is right."""
    spec = small_spec(name)
    inputs = draw(spec, Structure(2, 9, 12), "discriminating", 3, dtype)
    for factors in ([0.5, 0.7, 0.9, 1.1, 1.3, 1.5], [0.5, 0.7, 1.0, 1.0, 1.0, 1.0]):
        out = round_to(truth(spec, inputs).out * np.asarray(factors)[:, None, None], dtype)
        found = diagnose(out, spec, inputs, recipe=dtype, max_deviations=1)
        (fit,) = found.fits
        assert (fit.fits, fit.value) == (True, pytest.approx(factors, rel=1e-3))
        said = ", ".join(f"{x:g}" for x in factors)
        assert f"out is multiplied by a factor that differs by head: {said} (fits" in " ".join(str(found).split())


@pytest.mark.parametrize(("factor", "said"), [(1.02, "1.02"), (1.000061, "1.000061"), (0.99994, "0.99994")])
def test_a_factor_near_one_is_distinguished_from_one(factor: float, said: str) -> None:
    inputs = draw(SPEC, Structure(2, 9, 12), "discriminating", 3, "float32")
    found = diagnose(truth(SPEC, inputs).out * factor, SPEC, inputs, recipe="float32", max_deviations=1)
    words = found.fits[0].text.replace(",", "").split()
    assert words[:8] == ["out", "is", "multiplied", "by", f"{said}:", "it", "is", "scaled"]
    assert words[9] != words[-1]  # and what the spec has


def test_no_factor_is_fitted_where_sums_overflow() -> None:
    """Memory never written to may hold any float64 number."""
    t = target(of(SPEC))
    found = diagnose(np.full(t.actual.shape, 1.5e308), SPEC, t.inputs, recipe="float32", max_deviations=1)
    assert not found.fits
    assert not found.candidates


def test_a_number_that_does_not_pass_has_the_residual_of_the_stage_that_fails() -> None:
    t = target(of(SPEC, 0.5))
    noisy = t.actual * (1 + 0.01 * np.sign(np.sin(np.arange(t.actual.size)))).reshape(t.actual.shape)
    trial = Trial("factor", 0.5, "", lambda inputs: Problem(SPEC, inputs, factor=0.5))
    wrong = replace(t, actual=round_to(noisy, "float32"))
    (one,), (two,) = evaluate(trial, [(wrong,)]), evaluate(trial, [(wrong,), (wrong,)])
    assert not two.fits
    assert two.residual == one.residual > 1


# λ and the scale of each head


def with_lambda(spec: Spec, lambdas: Any, factor: Any) -> Kernel:
    """A kernel with these λ and this factor."""
    other = spec.replace(lambda_form="given", out_scale="none")

    def kernel(inputs: dict[str, Any]) -> Any:
        x = {n: a for n, a in inputs.items() if n not in (*VECTORS, "lambda_logits")}
        out = truth(other, {**x, "lambda_full": np.asarray(lambdas)}).out
        return out * np.broadcast_to(factor, spec.heads)[:, None, None]

    return kernel


def lambda_and_scale(lambdas: Any, factor: Any, spec: Spec = SPEC, **how: Any) -> tuple[Target, Fit]:
    """An output, and λ and scale together that are fitted to it."""
    t = target(with_lambda(spec, lambdas, factor), spec, **{"structure": Structure(2, 7, 9), "members": 2, **how})
    (fit,) = evaluate(fit_lambda(spec, (t,))[-1], [(t,)])
    assert fit.fits
    return t, fit


@pytest.mark.parametrize("name", ["hf_diffllama", "ms_v1", "diff_v2"])
@pytest.mark.parametrize("factor", [0.37, np.linspace(0.3, 1.4, 6)])
def test_lambda_of_every_head_and_the_scale(name: str, factor: Any) -> None:
    lambdas = np.linspace(0.2, 0.9, 6)
    _, fit = lambda_and_scale(lambdas, factor, small_spec(name))
    assert fit.value["lambda_full"] == pytest.approx(lambdas, abs=1e-6)
    assert fit.value["scale"] == pytest.approx(np.broadcast_to(factor, 6), rel=1e-4)
    own, scale = ("one for each token", "1") if name == "diff_v2" else ("0.", "0.5293")
    assert "by head 0.2, 0.34" in fit.text
    assert f"0.9, where the spec has {own}" in fit.text
    assert fit.text.endswith(f", where the spec has {scale}")
    assert format_list(np.ones(MAX_LISTED + 1)) == "1, " * MAX_LISTED + "…"


@pytest.mark.parametrize(
    ("value", "said"),
    [
        *((lambda_init(n), f"λ is {lambda_init(n):.4g} in every head, which is λ_init of layer {n}, where the spec")
          for n in (3, 10)),
        (lambda_init(3) + 1e-4, f"λ is {lambda_init(3) + 1e-4:.4g} in every head, where the spec"),
        (0.8, "λ is 0.8 in every head, where the spec"),  # as that of every deep layer
    ],
)  # fmt: skip
def test_a_lambda_that_is_lambda_init_has_its_layer(value: float, said: str) -> None:
    _, fit = lambda_and_scale(value, 0.5)
    assert fit.text.startswith(said)


# λ_init of another layer: in λ and the scale, in λ alone, in the scale alone

DEEP = Spec.preset("hf_diffllama", query_heads=4, key_heads=2, head_dim=8, layer=3)
PLACES = {LAYER: "", LAYER_OF_LAMBDA: " in λ alone", LAYER_OF_SCALE: " in the scale of the output alone"}


def at_layer(of_lambda: int, of_scale: int, spec: Spec = DEEP, **how: Any) -> Target:
    """An output with λ_init of these layers, counted from 0."""
    scaled = spec.out_scale == "1 - lambda_init"
    by = (1 - lambda_init(of_scale)) / (1 - lambda_init(of_lambda)) if scaled else 1.0
    kernel = of(spec.replace(lambda_base="constant", lambda_init=lambda_init(of_lambda)), by)
    return target(kernel, spec, **{"structure": Structure(2, 7, 9), "seed": 1, "members": 4, **how})


@pytest.mark.parametrize(
    ("of_lambda", "of_scale", "place"),
    [
        *((7, 7, LAYER), (4, 3, LAYER_OF_LAMBDA), (3, 2, LAYER_OF_SCALE)),
        *(pytest.param(*case, marks=pytest.mark.slow)
          for case in ((0, 0, LAYER), (10, 10, LAYER), (6, 3, LAYER_OF_LAMBDA), (3, 6, LAYER_OF_SCALE))),
    ],
)  # fmt: skip
def test_a_layer_is_named_by_where_it_is(of_lambda: int, of_scale: int, place: str) -> None:
    (fit,) = fit_one(DEEP, at_layer(of_lambda, of_scale))
    layer = of_scale if place == LAYER_OF_SCALE else of_lambda
    assert (fit.parameter, fit.value, fit.fits) == (place, [layer], True)
    assert fit.text == f"λ_init is that of layer {layer}{PLACES[place]}, where the spec's layer is 3"


def test_the_limit_of_deep_layers_is_named_as_a_constant() -> None:
    (fit,) = fit_one(DEEP, at_layer(3, 80))
    said = "λ_init is 0.8 in the scale of the output alone, the limit for deep layers, where the spec's layer is 3"
    assert fit.text.startswith(f"{said}; layers ")


def test_steps_end_where_the_minimized_function_no_longer_changes() -> None:
    seen: list[float] = []

    def f(x: float, floor: float) -> float:
        seen.append(x)
        return float(np.hypot(floor, 1e6 * (x - 0.3)))

    grid = np.linspace(-1.0, 1.0, 11)
    best, least = minimize(partial(f, floor=1.0), grid)
    assert abs(best - 0.3) < 1e-6
    assert least < 1.01
    calls = len(seen)
    minimize(partial(f, floor=1e9), grid)  # nothing near makes a difference
    assert len(seen) - calls <= len(grid) + 4


@pytest.mark.parametrize(
    "structure", [Structure(pages=((1, 27), (1, 6), (1, 22))), Structure(2, 12, 12, hidden=24)], ids=["paged", "layer"]
)
def test_a_factor_that_no_row_shows_is_found_for_inputs_that_have_no_parts(structure: Structure) -> None:
    spec = Spec.preset("hf_diffllama", query_heads=4, key_heads=2, head_dim=8, layer=2)
    t = target(of(spec, by=1.01), spec, structure=structure, values="natural", dtype="bfloat16")
    assert t.fails_as_tensor
    found = diagnose(t.actual, spec, t.inputs, recipe="bfloat16", max_deviations=1)
    assert [(f.parameter, round(f.value, 3)) for f in found.fits] == [("factor", 1.01)]


@pytest.mark.slow
@pytest.mark.parametrize(("seed", "epsilon"), [(0, 1e-4), (3, 1e-4), (1, 3e-4)])
def test_numbers_that_no_row_shows_are_fitted_to_the_whole(seed: int, epsilon: float) -> None:
    spec = Spec.preset("hf_diffllama", query_heads=8, key_heads=4, head_dim=16, layer=3, causal="none")
    wrong = of(spec.replace(norm_eps=epsilon))
    t = target(wrong, spec, structure=Structure(1, 110, 110), values="natural", seed=seed, dtype="bfloat16")
    assert t.fails_as_tensor
    found = diagnose(t.actual, spec, t.inputs, recipe="bfloat16", max_deviations=1)
    fitted = {fit.parameter: fit.value for fit in found.fits if fit.fits}  # a factor may pass too, and be first
    assert fitted["norm_eps"] == pytest.approx(epsilon, rel=0.01)
