"""Wrong gradients beside a right output get the name of the deviation that they are of."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from refdiff.backends import ops_for, overlay
from refdiff.oracle import Case, Ranking, Recipe, budget, cases, diagnose, truth
from refdiff.oracle.cases.fixed import small_spec
from refdiff.oracle.diagnosis.ranking import AMBIGUOUS, UNIQUE
from refdiff.oracle.diagnosis.targets import Target, quick_residual
from refdiff.oracle.mistakes import Mistake, wrap
from refdiff.oracle.mistakes.in_backward import BACKWARD_MISTAKES, row_sum_mistake
from refdiff.oracle.rounding import round_to
from refdiff.oracle.rounding.ensemble import quantise
from refdiff.oracle.rounding.evaluation_order import HELD_OUT
from refdiff.oracle.rounding.rounded_layers import rounded_ops
from refdiff.oracle.truth.backward import backward
from tests.oracle.diagnosis.backward_by_hand import SPEC as SPEC_BY_HAND
from tests.oracle.diagnosis.backward_by_hand import Factor, by_hand, case_by_hand
from tests.oracle.diagnosis.outputs import rounded

SPEC = small_spec("hf_diffllama")
NAMES = ("dq", "dk", "dv", "dlambda_q1")


def asked(case: Case, grads: dict[str, np.ndarray]) -> Ranking:
    given = grads if "out" in grads else {"out": gradients(case)["out"], **grads}
    return diagnose(given, case.spec, case.inputs, recipe=case.dtype, dout=case.dout)


def gradients(case: Case, **changes: Any) -> dict[str, np.ndarray]:
    """What a kernel gives, in an order that no budget is made of."""
    return rounded(case.spec.replace(**changes), case.inputs, case.dtype, dout=case.dout)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"causal": "none"}, "no_causal_mask"),
        ({"pairing": "interleaved"}, "interleaved_pairs"),
        ({"values": "interleaved"}, "interleaved_value_heads"),
        ({"out_scale": "none"}, "no_output_scale"),
    ],
)
def test_gradients_of_another_spec(changes: dict[str, Any], name: str, dtype: str) -> None:
    case = cases("discriminating", 5, spec=SPEC, dtype=dtype)[1]
    wrong = gradients(case, **changes)
    found = asked(case, {n: wrong[n] for n in NAMES})
    assert (found.status, found.name) == (UNIQUE, name)
    assert found.candidates[0].explains > 0.9
    failed = [note.split()[4] for note in found.notes if note.startswith("the output is right, ")]
    assert len(failed) > 1
    assert found.notes[0].startswith(f"{', '.join(failed[:-1])} and {failed[-1]} are those of {name}")


@pytest.mark.parametrize("factor", [1.07, 1.3])
@pytest.mark.parametrize("seed", [0, 1])
def test_the_gradient_of_lambda_alone_has_no_name_of_what_changes_others(factor: float, seed: int) -> None:
    """A sum is one number: what is near it by chance would show in dq, dk and dv, which are right."""
    spec = SPEC.replace(rope="none", head_dim=16)
    case = cases("natural", seed, spec=spec, dtype="bfloat16")[1]
    right = gradients(case)
    wrong = {n: round_to(y * factor, "bfloat16") if n.startswith("dlambda") else y for n, y in right.items()}
    assert asked(case, wrong).name is None


@pytest.mark.parametrize("is_gradient", [True, False])
def test_a_gradient_that_is_zero_has_the_errors_of_the_truth(is_gradient: bool) -> None:
    """dq of a query with one key is a difference: its terms have errors. A masked row of an output has none."""
    truth, rows = np.ones((1, 1, 2, 4)), np.full((1, 1, 2), 1e-3)
    wrong = truth * np.asarray([[0.0], [2.0]])
    target = Target({}, wrong + 1e-3, truth, rows, Recipe.of("bfloat16"), is_gradient=is_gradient)
    assert (quick_residual(target, wrong) <= 1.0) == is_gradient


def mistaken(case: Case, mistake: Mistake) -> dict[str, np.ndarray]:
    """What a kernel gives whose derivative has a mistake, in an order that no budget is made of."""
    recipe = Recipe.of(case.dtype)
    ops = overlay(rounded_ops(recipe, HELD_OUT[0]), wrap(mistake))
    found = backward(case.spec, quantise(case.inputs, recipe), case.dout.astype(np.float64), ops)
    return {f"d{n}": round_to(g, recipe.storage) for n, g in found.items() if n != "lambda_full"}


ALIKE = ("no_row_sums", "mean_for_row_sum", "row_sums_of_difference")
"""Below a norm the first and the last are the same but for ε, since no gradient that comes through one has a part along
its input. A mean of 32 numbers is 1/32 of their sum."""
AS_IN_THE_SPEC = (
    ("no_causal_mask", "gradient_without_causal_mask"),
    ("no_padding_mask", "gradient_without_mask"),
)
"""Without a norm the gradient does not depend on the output: no mask in it, and none in both, are the same."""


SIGNS = re.compile("(second_(gradient|product|row_sum)|value_gradient)_without_(lambda_and_)?sign")
"""Where the four terms lose λ is quick; where they lose its sign, too, is slow."""


@pytest.mark.subjects
@pytest.mark.parametrize(
    ("preset", "dtype"),
    [
        ("hf_diffllama", "bfloat16"),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in (
                ("ms_v1", "float32"),
                ("diff_v2", "bfloat16"),
            )
        ),
    ],
)
@pytest.mark.parametrize(
    "mistake",
    [pytest.param(m, marks=[pytest.mark.slow] if SIGNS.fullmatch(m.name) else []) for m in BACKWARD_MISTAKES],
    ids=str,
)
def test_a_mistaken_derivative(mistake: Mistake, preset: str, dtype: str) -> None:
    padded = mistake.name == "gradient_without_mask"
    case = cases("discriminating", 3, spec=small_spec(preset), dtype=dtype)[0 if padded else 1]
    found = asked(case, mistaken(case, mistake))
    failed = [note.split()[4] for note in found.notes if note.startswith("the output is right, ")]
    if preset == "diff_v2" and mistake.layer in ("rms_norm_vjp", "diff_lambda_vjp"):
        assert not failed, "v2 has no such layer"
        return
    if preset != "diff_v2" and mistake.layer == "diff_lambda_v2_vjp":
        assert not failed, "v1 has no such layer"
        return
    if mistake.layer == "activation_vjp":
        assert not failed, "no gate is in these"
        return
    (said,) = found.notes[: -len(failed)]
    names = re.sub(r" \([^ ].*?\)(?= or |$)", "", said.partition(" of ")[2]).split(" or ")
    expected: tuple[str, ...] = (mistake.name,)
    if mistake.name in ALIKE and (preset, dtype) == ("hf_diffllama", "bfloat16"):
        expected = ALIKE
    if preset == "diff_v2":
        expected = next((pair for pair in AS_IN_THE_SPEC if mistake.name in pair), expected)
    assert tuple(names) == expected
    if padded:  # what stands in padding is so large that gradients of q and k are rounding, and have no name
        assert set(said.partition(" are those")[0].replace(" and ", ", ").split(", ")) <= set(failed)
        return
    assert found.status == (UNIQUE if len(expected) == 1 else AMBIGUOUS)
    assert tuple(c.name for c in found.candidates) == expected


def test_gradients_with_different_mistakes_have_their_own_notes() -> None:
    """The gradient of k sees the future, that of v is of other pairs."""
    case = cases("discriminating", 5, spec=SPEC, dtype="float32")[1]
    wrong = {"dk": gradients(case, causal="none")["dk"], "dv": gradients(case, pairing="interleaved")["dv"]}
    first, second = asked(case, wrong).notes[:2]
    assert first.startswith("dk agrees with no_causal_mask (")
    assert first.endswith("); dv, which it changes too, does not")
    assert second.startswith("dv agrees with interleaved_pairs (")
    assert second.endswith("); dk, which it changes too, does not")


@pytest.mark.parametrize(
    ("along", "near"),
    [
        pytest.param(np.ones_like, 1, id="no r²"),
        *(pytest.param(lambda r, x=x: x * r**2, n, id=f"{x} r²") for x, n in ((0.03, 1), (0.06, 0))),
    ],
)
def test_a_partly_detached_norm_is_not_called_detached(along: Callable[[np.ndarray], np.ndarray], near: int) -> None:
    """Gradients of k and v may be those of one that is detached, up to rounding: that of q shows that it is not."""
    case = case_by_hand("bfloat16")
    found = asked(case, by_hand(case, along=along))
    assert found.name is None, str(found)
    notes = [n for n in found.notes if "rms_detached" in n]
    assert len(notes) == near
    for note in notes:
        assert " agree with rms_detached (" in note, note
        unlike = note.rpartition("); ")[2].removesuffix(", which it changes too, do not")
        unlike = unlike.removesuffix(", which it changes too, does not")
        assert "dq" in unlike.split(" and "), note
    assert asked(case, by_hand(case, along=np.zeros_like)).name == "rms_detached"


def test_a_gradient_of_a_detached_norm_beside_others_of_another_mistake() -> None:
    """Two passes, of which the one for dv detaches the norm. The others keep half of what is subtracted."""
    case = case_by_hand()
    wrong, detached = (by_hand(case, along=lambda r, x=x: x * r**2) for x in (0.5, 0.0))
    first = asked(case, wrong | {"dv": detached["dv"]}).notes[0]
    assert first.startswith("dv agrees with rms_detached (")
    lambdas = ", ".join(f"dlambda_{x}" for x in ("q1", "k1", "q2"))
    assert first.endswith(f"); dq, dk, {lambdas} and dlambda_k2, which it changes too, do not")


def test_a_wrong_gradient_of_a_projection_is_described() -> None:
    case = next(c for c in cases("modules", 3, spec=SPEC, dtype="float32") if "x" in c.inputs)
    right = gradients(case)
    (twice,) = asked(case, right | {"do_proj.weight": 2 * right["do_proj.weight"]}).notes[:1]
    assert twice == "do_proj.weight is 2 times what it should be"
    lost = right["do_proj.weight"].copy()
    lost[1] = 0
    (where,) = asked(case, right | {"do_proj.weight": lost}).where[:1]
    assert where.startswith("do_proj.weight is wrong only in row 1;")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_gradients_with_one_factor_share_a_note(dtype: str) -> None:
    case = cases("discriminating", 3, spec=SPEC, dtype=dtype)[1]
    right = gradients(case)
    of_lambda = [n for n in right if n.startswith("dlambda_") and n != "dlambda_full"]
    by = {"dq": 7.0, "dk": -0.3, "dv": 7.0, **dict.fromkeys(of_lambda, 12.5)}
    found = asked(case, {n: x * right[n] for n, x in by.items()})
    told = [
        re.fullmatch(r"(.*) (?:is|are) ([-\d.]+) times what (?:it|they) should be", n) for n in found.notes[: -len(by)]
    ]
    assert [m and m[1] for m in told] == ["dq and dv", "dk", "dlambda_q1, dlambda_k1, dlambda_q2 and dlambda_k2"]
    assert [float(m[2]) for m in told if m] == pytest.approx([7, -0.3, 12.5], rel=0.02)


def test_a_factor_of_one_is_not_reported() -> None:
    """One number that is wrong leaves the others as they are; a factor next to 1 has the digits that show it."""
    case = cases("discriminating", 3, spec=SPEC, dtype="float32")[1]
    right = gradients(case)
    one_off = right["dlambda_q1"].copy()
    one_off[0] += 3e-6 * np.max(np.abs(one_off))
    found = asked(case, {"dlambda_q1": one_off})
    assert len(found.notes) == 1
    assert found.notes[0].startswith("the output is right, dlambda_q1 is not")
    assert asked(case, {"dq": 1.00004 * right["dq"]}).notes[:-1] == ("dq is 1.00004 times what it should be",)


@pytest.mark.parametrize(
    ("axis", "kept", "said"),
    [
        (0, [0], "are those of sequence 0 alone"),
        (1, [1], "are those of head 1 alone"),
        (1, [0, 2], "are those without head 1"),
    ],
)
def test_sums_of_a_part(axis: int, kept: list[int], said: str) -> None:
    """Blocks that each write dλ, in place of adding to it, leave that of one; an early exit leaves one out."""
    case = cases("discriminating", 3, spec=SPEC.replace(query_heads=6, key_heads=6), dtype="float32")[1]
    part = np.zeros_like(case.dout)
    index = (slice(None),) * axis + (kept,)
    part[index] = case.dout[index]
    whole, of_part = gradients(case), rounded(case.spec, case.inputs, case.dtype, dout=part)
    names = ("dlambda_q1", "dlambda_k1", "dlambda_q2", "dlambda_k2")
    found = asked(case, {**whole, **{name: of_part[name] for name in names}})
    assert found.notes[: -len(names)] == (f"dlambda_q1, dlambda_k1, dlambda_q2 and dlambda_k2 {said}",)


@pytest.mark.parametrize(
    ("zero", "said"),
    [
        (("dv",), "dv is zero where it should not be"),
        (("dq", "dk"), "dq and dk are zero where they should not be"),
        (("dlambda_q1",), "dlambda_q1 is that of lambda_detached ("),
    ],
)
def test_zeros(zero: tuple[str, ...], said: str) -> None:
    case = cases("discriminating", 3, spec=SPEC, dtype="float32")[1]
    right = gradients(case)
    found = asked(case, {n: 0 * right[n] if n in zero else right[n] for n in NAMES})
    (note,) = found.notes[: -len(zero)]
    assert note.startswith(said)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("name", "slope"),
    [
        ("no_sigmoid_derivative", np.ones_like),
        ("sigmoid_derivative_without_one_minus_lambda", np.copy),
        ("sigmoid_derivative_without_lambda", lambda s: 1 - s),
    ],
)
def test_the_slope_of_a_sigmoid(name: str, slope: Callable[[np.ndarray], np.ndarray], dtype: str) -> None:
    case = cases("discriminating", 3, spec=small_spec("diff_v2"), dtype=dtype)[1]
    right = truth(case.spec, case.inputs, dout=case.dout)
    by_token = np.swapaxes(right.lambda_full, 1, 2)
    of_lambda = np.swapaxes(right.grads["lambda_full"], 1, 2)
    found = asked(case, {"dlambda_logits": round_to(slope(by_token) * of_lambda, dtype)})
    assert (found.status, found.name) == (UNIQUE, name), str(found)


@pytest.mark.parametrize(
    ("swapped", "name"),
    [
        (True, "lambda_vector_gradients_swapped"),
        (False, "lambda_gradient_without_exponentials"),
    ],
)
def test_the_vectors_of_lambda(swapped: bool, name: str) -> None:
    case = cases("discriminating", 3, spec=SPEC, dtype="float32")[1]
    right, wrong = truth(case.spec, case.inputs, dout=case.dout).grads, {}
    for i in "12":
        q, k = (case.inputs[f"lambda_{x}{i}"].astype(np.float64) for x in "qk")
        for x, y in ("qk", "kq"):
            wrong[f"dlambda_{x}{i}"] = right[f"lambda_{y if swapped else x}{i}"] / (1 if swapped else np.exp(q @ k))
    found = asked(case, wrong)
    assert (found.status, found.name) == (UNIQUE, name), str(found)


def test_the_answer_stands_before_the_verdicts() -> None:
    """A flash kernel that forgets the sign of λ in ∂L/∂(A₂ V) has three wrong gradients, of two names."""
    case = case_by_hand()
    wrong = by_hand(case, product=LOST["sign"], row_sum=LOST["sign"], values=LOST["sign"])
    of_scores, of_values = asked(case, wrong).notes[:2]
    assert "are those of second_gradient_without_sign" in of_scores
    assert of_values.startswith("dv is that of value_gradient_without_sign")


def test_right_gradients_and_noise_have_no_name() -> None:
    case = cases("discriminating", 5, spec=SPEC, dtype="bfloat16")[1]
    right = gradients(case)
    assert not [note for note in asked(case, {n: right[n] for n in NAMES}).notes if note.startswith("d")]
    noise = np.random.default_rng(0).normal(size=right["dq"].shape)
    for wrong in (noise, right["dq"][:, ::-1]):
        assert len(asked(case, {"dq": wrong}).notes) == 1


LOST: dict[str, Factor] = {
    "lambda": lambda _: -1.0,
    "sign": lambda x: x,
    "lambda_and_sign": lambda _: 1.0,
}


@pytest.mark.parametrize("lost", LOST)
@pytest.mark.parametrize(
    ("where", "name"),
    [
        (("product", "row_sum"), "second_gradient"),
        (("product",), "second_product"),
        (("row_sum",), "second_row_sum"),
        (("values",), "value_gradient"),
    ],
)
def test_a_kernel_that_loses_lambda_in_one_place(where: tuple[str, ...], name: str, lost: str) -> None:
    case = case_by_hand()
    factors: dict[str, Any] = dict.fromkeys(where, LOST[lost])
    found = asked(case, by_hand(case, **factors))
    assert found.name == f"{name}_without_{lost}", str(found)


def test_a_gradient_of_lambda_without_its_sign_has_one_name() -> None:
    case = case_by_hand()
    found = asked(case, by_hand(case, of_lambda=-1.0))
    assert found.name == "lambda_gradient_without_sign", str(found)


@pytest.mark.parametrize(("heads", "shared"), [((0,), 2), ((1,), 2), ((1,), 4), ((0, 1, 3), 4)])
def test_the_query_head_that_is_taken_alone_or_left_out_is_named(heads: tuple[int, ...], shared: int) -> None:
    case = case_by_hand(spec=SPEC_BY_HAND.replace(key_heads=8 // shared))
    found = asked(case, by_hand(case, heads=heads))
    alone = len(heads) == 1
    (number,) = heads if alone else set(range(shared)) - set(heads)
    assert found.name == f"gradient_{'of' if alone else 'without'}_one_query_head", str(found)
    which = f"query head {number} (of 0 to {shared - 1} that share a key head)"
    assert which in found.candidates[0].deviations[0].what


@pytest.mark.parametrize("names", [("dk", "dv"), ("dk",), ("dv",)], ids=str)
def test_gradients_summed_over_query_heads_of_other_groups_are_named(names: tuple[str, ...]) -> None:
    """Those of each query head, (B, H, …), summed as (B, n, P, …) over n in place of (B, P, n, …)."""
    case = cases("discriminating", 3, spec=SPEC.replace(query_heads=12, key_heads=4), dtype="float32")[1]
    repeated = {name: np.repeat(case.inputs[name], 3, axis=1) for name in "kv"}
    each = truth(case.spec.replace(key_heads=12), {**case.inputs, **repeated}, dout=case.dout).grads
    wrong = gradients(case)
    for name in names:
        B, _, S, d = case.inputs[name[1]].shape  # two halves, of 3 query heads for each of 2 key heads
        wrong[name] = round_to(each[name[1]].reshape(B, 2, 3, 2, S, d).sum(axis=2).reshape(B, 4, S, d), "float32")
    found = asked(case, wrong)
    assert (found.status, found.name) == (UNIQUE, "gradient_summed_over_other_query_heads"), str(found)


def test_row_sums_of_something_else() -> None:
    """One wrong number for each row of the second map."""
    case = case_by_hand()
    found = asked(case, by_hand(case, row_sum=lambda x: 0.4 * x))
    assert found.notes[0] == (
        "dq and dk are those of other row sums D = rowsum(∂L/∂O ⊙ O): one number per row explains the error"
    )
    packed = cases("layout", 3, spec=SPEC, dtype="float32")[0]
    right = gradients(packed)
    ones = backward(SPEC, quantise(packed.inputs, Recipe.of("float32")), packed.dout.astype(np.float64),
                    overlay(ops_for(), wrap(row_sum_mistake(1.0, 1.0))))  # fmt: skip
    found = asked(packed, {"dq": round_to(ones["q"], "float32"), "dk": right["dk"]})
    assert found.notes[0].startswith("dq is that of other row sums"), str(found)


@pytest.mark.parametrize(("dtype", "names"), [("float32", ALIKE[1:2]), ("float16", ALIKE[1:2]), ("bfloat16", ALIKE)])
def test_a_mean_in_place_of_row_sums(dtype: str, names: tuple[str, ...]) -> None:
    """In bfloat16 it is as good as no row sums."""
    case = case_by_hand(dtype)
    found = asked(case, by_hand(case, row_sums=1 / 32))
    assert {c.name for c in found.candidates} == {*names}, str(found)


@pytest.mark.parametrize(
    ("part", "dtype"), [*((x, "bfloat16") for x in (0.1, 0.25, 0.5, 0.9)), (1 / 16, "float16"), (1 / 64, "float16")]
)
def test_a_part_of_the_row_sums_is_not_called_none(part: float, dtype: str) -> None:
    case = case_by_hand(dtype)
    found = asked(case, by_hand(case, row_sums=part))
    assert not found.candidates, str(found)
    assert "of other row sums" in found.notes[0], str(found)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_log_sum_exp_of_the_first_map_for_both(dtype: str) -> None:
    case = case_by_hand(dtype)
    found = asked(case, by_hand(case, saved=lambda lse: [lse[0], lse[0]]))
    assert (found.status, found.name) == (UNIQUE, "lse_of_first_map"), str(found)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("factor", "name"), [(np.log2(np.e), "lse_in_base_2"), (np.log(2), "lse_not_in_base_2")])
def test_log_sum_exps_of_another_base(factor: float, name: str, dtype: str) -> None:
    """A forward pass by 2^z saves its sums in base 2; a backward pass by e^z reads them as natural, or the reverse."""
    case = case_by_hand(dtype)
    found = asked(case, by_hand(case, saved=lambda lse: [factor * x for x in lse]))
    assert (found.status, found.name) == (UNIQUE, name), str(found)


@pytest.mark.parametrize(("saved", "dtype"), [("bfloat16", "float32"), ("float16", "float32"), ("bfloat16", "float16")])
def test_log_sum_exps_saved_in_16_bits(saved: str, dtype: str) -> None:
    case = case_by_hand(dtype)
    found = asked(case, by_hand(case, saved=lambda lse: [round_to(x, saved) for x in lse]))
    assert (found.status, found.name) == (UNIQUE, f"lse_saved_in_{saved}"), str(found)


@pytest.mark.parametrize("factor", [1 / np.log(2), 1.3, 0.8])
def test_a_factor_of_a_gradient_is_no_deviation_of_another_factor(factor: float) -> None:
    case = case_by_hand("bfloat16")
    right = by_hand(case)
    found = asked(case, right | {"dk": round_to(factor * right["dk"], "bfloat16")})
    assert not found.candidates, str(found)
    times = re.fullmatch(r"dk is ([\d.]+) times what it should be", found.notes[0])
    assert times, str(found)
    assert float(times[1]) == pytest.approx(factor, rel=0.01)


@pytest.mark.slow
@pytest.mark.parametrize("factor", [0.65, 0.7, 0.74, 1.3, 1.4, 1.5])
def test_a_factor_of_a_sum_is_not_the_sum_of_a_part(factor: float) -> None:
    """One of several heads gives any number within rounding errors of 16 bits by chance."""
    case = case_by_hand("bfloat16")
    wrong = {n: round_to(factor * y, "bfloat16") if n.startswith("dlambda") else y for n, y in by_hand(case).items()}
    found = asked(case, wrong)
    assert not any("alone" in note or "without" in note for note in found.notes), str(found)


def test_row_sums_are_not_fitted_to_noise() -> None:
    """As of dq summed in two bfloat16 numbers: it is as near to the truth as to other row sums."""
    case = case_by_hand()
    right, allowed = gradients(case), budget(case.spec, case.inputs, case.dtype, dout=case.dout).rows["dq"]
    noise = np.random.default_rng(0).normal(size=right["dq"].shape)
    found = asked(case, right | {"dq": round_to(right["dq"] + 5 * allowed[..., None] * noise, "float32")})
    assert any(note.startswith("the output is right, dq is not") for note in found.notes)
    assert not any("row sums" in note for note in found.notes), str(found)


@pytest.mark.parametrize("preset", ["attention", "hf_diffllama"])
def test_gradient_without_the_derivative_of_a_softcap(preset: str) -> None:
    """Gradients of the scores are those of a backward pass whose tanh has the slope 1."""
    case = cases("discriminating", 3, spec=small_spec(preset).replace(softcap=2.0), dtype="float32")[1]
    ops, exact = rounded_ops(Recipe.of("float32"), HELD_OUT[0]), quantise(case.inputs, Recipe.of("float32"))
    unit = overlay(ops, lambda name, layer: (lambda x, site: 0 * x) if name == "round_at" else layer)
    found = backward(case.spec, exact, case.dout.astype(np.float64), unit)
    answer = asked(case, {f"d{name}": round_to(found[name], "float32") for name in ("q", "k")})
    assert answer.name == "gradient_without_softcap", str(answer)


def test_a_mistake_in_the_pass_for_dq_alone() -> None:
    """A kernel with a pass for dq and another for dk and dv, of which the first has another sign than the second."""
    case = case_by_hand()
    wrong = {**by_hand(case), "dq": by_hand(case, product=LOST["sign"])["dq"]}
    found = asked(case, wrong)
    assert found.name == "second_product_without_sign", str(found)
    assert found.notes[0].startswith("dq agrees with second_product_without_sign (")
    assert found.notes[0].endswith("; other gradients, which it changes too, are right")


def test_huge_and_infinite_gradients_give_no_warning() -> None:
    case = cases("extreme", 1, spec=small_spec("hf_diffllama"), dtype="bfloat16")[1]
    grads = rounded(case.spec, case.inputs, "bfloat16", dout=case.dout)
    for name in ("dq", "dk", "dv"):
        grads[name] = np.where(np.arange(grads[name].shape[-1]) % 5 == 0, np.inf, grads[name] * 1e30)
    found = diagnose(grads, case.spec, case.inputs, recipe="bfloat16", dout=case.dout, max_deviations=1)
    assert not found.candidates
    assert "dq is infinite in columns i with i mod 5 = 0 of every row" in str(found)
