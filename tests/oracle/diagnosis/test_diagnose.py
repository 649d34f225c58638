"""The name of the mistake, from an output that a wrong kernel gave: a sample here, all of them among the slow tests."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

import refdiff
from refdiff.oracle import Mistake, Ranking, Recipe, Spec, budget, cases, deviations, diagnose, truth
from refdiff.oracle.cases.fixed import small_spec
from refdiff.oracle.cases.structure import Structure
from refdiff.oracle.cases.values import draw
from refdiff.oracle.diagnosis.diagnose import NEARLY_RIGHT
from refdiff.oracle.diagnosis.ranking import AMBIGUOUS, NO_DEVIATION, NONE_FITS, UNIQUE
from refdiff.oracle.inputs import kind_of
from refdiff.oracle.inputs.sequences import Inputs
from refdiff.oracle.mistakes.kernel import is_same_output, output_with
from refdiff.oracle.mistakes.listed import draw_probes
from refdiff.oracle.rounding import round_to
from refdiff.oracle.thresholds import THRESHOLDS
from tests.oracle.diagnosis.outputs import by_weights, kernel, natural, output_of, pair_of_cases, rounded

HF, MS = small_spec("hf_diffllama"), small_spec("ms_v1")


def compatible(preset: str) -> Iterator[tuple[Mistake, ...]]:
    """All pairs of two axes that are a function of their own, on the inputs by which deviations are told apart."""
    spec = small_spec(preset)
    inputs = draw_probes(spec, "dense")

    def outs(some: tuple[Mistake, ...]) -> list[np.ndarray | None]:
        return [output_with(spec, x, some) for x in inputs]

    right = outs(())
    known = deviations(spec)
    alone = {d.name: outs((d,)) for d in known}
    for pair in combinations(known, 2):
        if pair[0].axis != pair[1].axis:
            both = outs(pair)
            others = (right, *alone.values())
            same = any(all(is_same_output(x, y) for x, y in zip(both, other, strict=True)) for other in others)
            if not same and any(x is not None for x in both):
                yield pair


def ask(preset: str, dtype: str, *names: str, order: int = 0, most: int = 1) -> Ranking:
    """Diagnose a kernel with the deviations of these names on both cases."""
    both = pair_of_cases(preset, dtype)
    outs = [output_of(case, *names, order=order) for case in both]
    return diagnose(outs, both[0].spec, [case.inputs for case in both], recipe=dtype, max_deviations=most)


@pytest.mark.parametrize(
    ("preset", "dtype", "name"),
    [
        ("diff_v2", "float32", "v2_no_sigmoid"),
        ("diff_v2", "float16", "v2_half_split_pairs"),
        ("hf_diffllama", "float16", "maps_swapped"),
    ],
)
def test_a_name_whose_roundings_hide_the_error_is_no_answer(preset: str, dtype: str, name: str) -> None:
    """Bits read as whole numbers give scores that overflow, or outputs off by 10,000: anything is within that."""
    spec = small_spec(preset)
    case = natural(spec, Structure(batch=1, queries=4, keys=9), dtype, "cancellation", seed=1)
    found = diagnose(output_of(case, name), spec, case.inputs, recipe=dtype, max_deviations=1)
    assert found.name == name, found


@pytest.mark.parametrize(("seed", "queries", "order", "name"), [(3, 40, 3, "causal_mask_top_left"), (10, 20, 0, None)])
def test_a_name_that_noise_hides_must_explain_the_error(seed: int, queries: int, order: int, name: str | None) -> None:
    """λ near 1 in bfloat16: correct kernels miss every row by a quarter, and pass as several mistakes."""
    case = natural(HF, Structure(batch=1, queries=queries, keys=queries + 4), "bfloat16", "cancellation", seed=seed)
    out = output_of(case, "causal_mask_top_left", order=order)
    found = diagnose(out, HF, case.inputs, recipe="bfloat16", max_deviations=1)
    assert found.name == name, found
    assert found.status == (UNIQUE if name else NONE_FITS), found


def test_an_output_that_is_nearly_right_has_no_name() -> None:
    """Errors a little above those of right kernels: it passes with all that its inputs do not show."""
    case = pair_of_cases("hf_diffllama", "bfloat16")[0]
    known = budget(HF, case.inputs, "bfloat16", members=4)
    right = output_of(case)
    errors = np.random.default_rng(0).choice([-1.5, 1.5], right.shape) * known.rows["out"][..., None]
    found = diagnose(right + errors, HF, case.inputs, recipe="bfloat16")
    assert found.status == NONE_FITS
    assert NEARLY_RIGHT in found.notes
    assert not any(c.fits for c in found.findings)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_right_output_has_no_deviation(dtype: str) -> None:
    found = ask("hf_diffllama", dtype)
    assert found.status == NO_DEVIATION
    assert not found.findings
    assert found.name is None


def test_errors_of_other_tensors_are_noted_if_the_output_is_correct() -> None:
    """A log-sum-exp to base 2, and a backward pass without the triangle."""
    case = cases("discriminating", 5, spec=HF, dtype="float32")[1]
    right = truth(HF, case.inputs, dout=case.dout)
    given = {"out": right.out, "lse1": right.lse1 / np.log(2), "lse2": right.lse2, "dv": right.grads["v"]}
    found = diagnose(given, HF, case.inputs, recipe="float32", dout=case.dout)
    assert found.status == NONE_FITS
    (note,) = found.notes
    assert note.startswith("the output is right, lse1 is not: it is to base 2, the spec's is e")
    without = truth(HF.replace(causal="none"), case.inputs, dout=case.dout).grads["v"]
    found = diagnose({"out": right.out, "dv": without}, HF, case.inputs, recipe="float32", dout=case.dout)
    assert found.notes[-1].startswith("the output is right, dv is not")


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("lse2", "lse2 is wrong and lse1 is right: look at the scores and the mask of the second map"),
        ("", "lse1 and lse2 are right: look at what comes after the scores: values, the weighted sums and their "
             "rescaling or merging over tiles, λ, the difference and the norm"),
    ],
)  # fmt: skip
def test_log_sum_exps_tell_on_which_side_of_the_softmax_it_is(wrong: str, said: str) -> None:
    case = cases("discriminating", 5, spec=HF, dtype="float32")[1]
    right = truth(HF, case.inputs)
    out = np.asarray(right.out) * np.random.default_rng(1).normal(size=right.out.shape)
    given = {"out": out, "lse1": right.lse1, "lse2": right.lse2}
    given |= {wrong: 1.5 * given[wrong]} if wrong else {}
    found = diagnose(given, HF, case.inputs, recipe="float32", max_deviations=1)
    assert found.status == NONE_FITS
    assert found.where[0] == said
    assert said not in diagnose({"out": out}, HF, case.inputs, recipe="float32", max_deviations=1).where
    both = {**given, "lse1": 2 * right.lse1, "lse2": 2 * right.lse2}
    assert not diagnose(both, HF, case.inputs, recipe="float32", max_deviations=1).where
    assert found.notes[0].startswith("nothing in the catalogue, alone, explains more than "), found


def test_right_log_sum_exps_exclude_a_mask() -> None:
    """Two splits, at no edge of a tile, whose outputs are averaged without their weights."""
    case = cases("natural", 0, spec=HF, dtype="float32")[0]
    S, right = case.inputs["k"].shape[2], truth(HF, case.inputs)

    def halves(z: np.ndarray) -> np.ndarray:
        whole = np.exp(z - np.max(z, axis=-1, keepdims=True))
        sums = np.add.reduceat(whole, [0, 18], axis=-1)
        shares = whole / np.repeat(np.where(sums > 0, sums, 1.0), [18, S - 18], axis=-1)
        return shares / np.sum(sums > 0, axis=-1, keepdims=True)

    out = by_weights(HF, case.inputs, lambda first, second: (halves(first), halves(second)))
    given = {"out": out.astype(np.float32), "lse1": right.lse1, "lse2": right.lse2}
    _, place, *_ = diagnose(given, HF, case.inputs, recipe="float32", max_deviations=1).where
    assert place.endswith("everything else is within budget: it looks like tiles or a split of keys, from token 10 on")


def test_without_an_output_the_rest_is_judged() -> None:
    case = cases("discriminating", 5, spec=HF, dtype="float32")[1]
    right = truth(HF, case.inputs, dout=case.dout)
    assert diagnose({"lse1": right.lse1}, HF, case.inputs, recipe="float32").status == NO_DEVIATION
    found = diagnose({"dv": 2 * right.grads["v"]}, HF, case.inputs, recipe="float32", dout=case.dout)
    assert (found.status, found.name) == (UNIQUE, "factor of dv = 2")
    assert found.notes[0].startswith("dv is wrong: ")


def test_the_answers_that_the_docstring_and_the_guide_show() -> None:
    spec = Spec.preset("hf_diffllama", query_heads=8, key_heads=4, head_dim=16, layer=3)
    inputs = draw(spec, Structure(2, 70, 70), "natural", 0, "bfloat16")
    out = truth(spec, inputs).out.copy()
    out[1, 3, 32:64] = 0
    guide = Path(refdiff.__file__).parent / "oracle" / "guides" / "triton.md"
    number = round_to(truth(spec.replace(scale=0.2), inputs).out, "bfloat16")
    pages = [diagnose.__doc__ or "", guide.read_text(encoding="utf-8")]
    for wrong, texts in ((out, pages), (number, pages[:1])):
        answer = " ".join(str(diagnose(wrong, spec, inputs, recipe="bfloat16")).split())
        assert all(answer in " ".join(text.split()) for text in texts), answer
    first, second, third = str(ask("hf_diffllama", "bfloat16", "layer_norm")).splitlines()[:3]
    shown = (diagnose.__doc__ or "").splitlines()
    assert first == "unique: layer_norm"
    assert any(line.strip().startswith(second.strip().partition("residual")[0]) for line in shown)
    assert third.strip() in [line.strip() for line in shown]


@pytest.mark.parametrize("names", [("masked_rows_nan",), ("masked_rows_nan", "layer_norm")])
def test_nan_that_a_deviation_gives_has_its_name(names: tuple[str, ...]) -> None:
    """Alone, and in a pair, which is looked for then: one of the two gives NaN in these places."""
    case = cases("discriminating", 5, spec=HF, dtype="float32")[2]
    out = output_of(case, *names)
    assert np.isnan(out).any()
    found = diagnose(out, HF, case.inputs, recipe="float32")
    assert found.status in (UNIQUE, AMBIGUOUS)
    fitting = [{d.name for d in c.hypotheses} for c in found.findings if c.fits]
    assert set(names) in fitting


def test_mistakes_that_inputs_cannot_tell_apart_are_ambiguous() -> None:
    """With one key λ (A₁ − A₂) V is zero, and so is an output that is multiplied by 1 − λ_init with λ_init = 1."""
    case = cases("degenerate", spec=MS, dtype="bfloat16")[0]
    out = output_of(case, "lambda_on_both_maps")
    assert not out.any()
    found = diagnose(out, MS, case.inputs, recipe="bfloat16", max_deviations=1)
    assert (found.status, found.name) == (AMBIGUOUS, None)
    assert {"lambda_on_both_maps", "lambda_init_is_1"} <= {c.name for c in found.findings}


def test_a_kernel_in_place_of_its_outputs() -> None:
    both = [case.inputs for case in pair_of_cases("hf_diffllama", "float32")]

    def mine(inputs: Inputs) -> np.ndarray:
        return truth(HF.replace(pairing="interleaved"), inputs, want=("out",)).out.astype(np.float32)

    for inputs in (both[0], both):
        found = diagnose(mine, HF, inputs, recipe="float32", max_deviations=1)
        assert (found.status, found.name) == (UNIQUE, "interleaved_pairs")


def test_arguments() -> None:
    case = pair_of_cases("hf_diffllama", "float32")[0]
    out = np.zeros((2, 6, 9, 32))
    with pytest.raises(ValueError, match="max_deviations: got 3, expected 1 or 2"):
        diagnose(out, HF, case.inputs, recipe="float32", max_deviations=3)
    with pytest.raises(ValueError, match="got 1 outputs and 2 inputs"):
        diagnose([out], HF, [case.inputs] * 2, recipe="float32")
    with pytest.raises(ValueError, match=r"out: got shape \(2, 9, 6, 32\)"):
        diagnose(np.swapaxes(out, 1, 2), HF, case.inputs, recipe="float32")
    with pytest.raises(ValueError, match="the outputs lack 'out', which a diagnosis needs: they hold nothing"):
        diagnose({}, HF, case.inputs, recipe="float32")
    with pytest.raises(ValueError, match="some of the outputs lack 'out', and others have it"):
        diagnose([{"lse1": out[..., 0]}, {"out": out}], HF, [case.inputs] * 2, recipe="float32")
    with pytest.raises(TypeError):
        diagnose({"out": "no"}, HF, case.inputs, recipe="float32")


@pytest.mark.slow
@pytest.mark.parametrize(("said", "does"), [("float32", "tf32"), ("float16", "bfloat16")])
def test_a_right_kernel_that_rounds_more_than_its_recipe_says(said: str, does: str) -> None:
    inputs = draw(HF, Structure(1, 24, 24), "natural", 3)
    found = diagnose(rounded(HF, inputs, does)["out"], HF, inputs, recipe=said)
    assert found.status == NONE_FITS
    assert found.notes[0] == (
        f"it passes with recipe={does!r}: does your kernel round there, where {said!r} does not say so?"
    )


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_right_kernel_that_rounds_scaled_q_as_its_recipe_does_not_say(dtype: str) -> None:
    """As MLX on a CPU: only one row has scores so large that it shows."""
    spec = Spec.preset("hf_diffllama", query_heads=8, key_heads=4, head_dim=16, layer=3, rope="none")
    inputs = cases("extreme", 0, spec=spec, dtype=dtype)[1].inputs
    out = rounded(spec, inputs, Recipe(dtype, scaled_q=dtype))["out"]
    found = diagnose(out, spec, inputs, recipe=dtype, max_deviations=1)
    assert (found.status, found.findings) == (NONE_FITS, ())
    assert found.where[0].startswith("it is wrong only in token 13 of head 2")
    assert found.notes[0].startswith(f"it passes with scaled_q={dtype!r}: does your kernel round there, ")


def test_candidates_that_explain_most_of_the_error_are_shown() -> None:
    """Of two mistakes where one is looked for; and what explains little is not."""
    found = ask("hf_diffllama", "bfloat16", "layer_norm", "no_output_scale")
    assert found.status == NONE_FITS
    assert "no_output_scale" in [c.name for c in found.findings]
    assert all(c.explains >= THRESHOLDS.explained for c in found.findings)
    assert "does not fit, explains " in str(found)
    assert found.notes[0].startswith("the closest explains ")


@pytest.mark.nightly
def test_pairs_are_named() -> None:
    """All but one of a sample of the compatible pairs, which may be one of several, or hidden beside the other one.

    In bfloat16 a kernel rounds the exponentials of λ as one of the deviations does, which then is none.
    """
    spec = small_spec("hf_diffllama")
    every = [c for profile in ("discriminating", "tiny_values") for c in cases(profile, 5, spec=spec, dtype="bfloat16")]
    dense = [c for c in every if kind_of(c.inputs) == "dense"]
    pairs = [p for p in compatible("hf_diffllama") if "exponentials_rounded_to_bfloat16" not in {d.name for d in p}]
    unnamed = []
    for n in np.random.default_rng(3).permutation(len(pairs))[:10]:
        outs, names = [kernel(case, pairs[n], int(n)) for case in dense], {d.name for d in pairs[n]}
        if any(out is None for out in outs):
            continue
        found = diagnose(outs, spec, [case.inputs for case in dense], recipe="bfloat16")
        answers = [set(name.split(" + ")) for name in (found.name, *found.findings[0].also)] if found.name else []
        if names not in answers:
            unnamed.append(found)
            said = {name for note in found.notes for name in note.rpartition(": ")[2].split(", ")}
            assert found.status == AMBIGUOUS or answers[0] < names <= answers[0] | said, f"{names}: {found}"
    assert len(unnamed) <= 1


def test_the_finite_part_of_an_output_with_nan_is_explained() -> None:
    case = pair_of_cases("hf_diffllama", "float32")[0]
    out = output_of(case, "layer_norm")
    out[0, 2, 5:] = np.nan
    found = diagnose(out, HF, case.inputs, recipe="float32", max_deviations=1)
    assert found.status == NONE_FITS
    assert found.findings[0].name == "layer_norm"
    assert found.findings[0].explains > 0.99
