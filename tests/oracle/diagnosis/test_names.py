"""No wrong name, and no name for what the inputs do not show."""

from __future__ import annotations

import math

import numpy as np
import pytest

from refdiff.oracle import Case, Spec, cases, diagnose, truth
from refdiff.oracle.cases.fixed import small_spec
from refdiff.oracle.cases.structure import Structure
from refdiff.oracle.cases.values import draw
from refdiff.oracle.diagnosis.ranking import NONE_FITS
from refdiff.oracle.inputs import VECTORS
from refdiff.oracle.inputs.sequences import Inputs
from refdiff.oracle.inputs.validation import as_float64
from refdiff.oracle.rounding import round_to
from tests.oracle.diagnosis.outputs import by_weights, output_of, rounded
from tests.oracle.tiled_kernels import tiled


def _with_lambda(case: Case, value: float) -> np.ndarray:
    """The output of a kernel that has this λ, stored in its type, without any mistake of the catalogue."""
    inputs = {name: x for name, x in case.inputs.items() if name not in VECTORS}
    inputs["lambda_full"] = round_to(np.asarray(value), case.dtype)
    return rounded(case.spec.replace(lambda_form="given"), inputs, case.dtype)["out"]


@pytest.mark.parametrize("layer", [3, 4])
@pytest.mark.parametrize("profile", [pytest.param("natural", marks=pytest.mark.slow), "discriminating"])
def test_lambda_init_alone_has_its_name(profile: str, layer: int) -> None:
    spec = small_spec("hf_diffllama").replace(layer=layer)
    case = cases(profile, layer, spec=spec, dtype="bfloat16")[1]
    out = _with_lambda(case, 0.8 - 0.6 * math.exp(-0.3 * layer))
    found = diagnose(out, spec, case.inputs, recipe="bfloat16", max_deviations=1)
    assert found.name == "lambda_init_only", str(found)
    assert found.findings[0].residual < 1.5


def test_lambda_without_exponentials_has_its_name_in_float32() -> None:
    case = cases("discriminating", 2, spec=small_spec("hf_diffllama"))[1]
    q1, k1, q2, k2 = (case.inputs[name].astype(np.float64) for name in VECTORS)
    out = _with_lambda(case, float(q1 @ k1 - q2 @ k2) + 0.8 - 0.6 * math.exp(-0.3 * case.spec.layer))
    found = diagnose(out, case.spec, case.inputs, recipe="float32", max_deviations=1)
    assert found.name == "no_exponentials", str(found)


@pytest.mark.parametrize(("queries", "keys", "window"), [(7, 9, None), (8, 8, 5)])
@pytest.mark.parametrize(("by", "name"), [(1, "one_future_key_visible"), (-1, "own_key_masked")])
def test_a_triangle_that_is_off_by_one(queries: int, keys: int, window: int | None, by: int, name: str) -> None:
    """With a cache, and with a window."""
    spec = small_spec("hf_diffllama").replace(window=window)
    inputs = draw(spec, Structure(1, queries, keys), "discriminating", 3)
    t, s = np.arange(queries)[:, None], np.arange(keys)[None]
    see = (s <= t + keys - queries + by) & (np.abs(s - t - keys + queries) < (window or queries + keys))
    wrong = rounded(spec.replace(causal="none", window=None), {**inputs, "mask": see}, order=1)
    found = diagnose(wrong["out"], spec, inputs, recipe="float32", max_deviations=1)
    assert found.name == name, str(found)


@pytest.mark.slow
def test_three_mistakes_are_several() -> None:
    case = cases("discriminating", 5, spec=small_spec("hf_diffllama"), dtype="float32")[1]
    three = ("layer_norm", "keys_swapped", "interleaved_value_heads")
    found = diagnose(output_of(case, *three), case.spec, case.inputs, recipe="float32")
    assert found.status == "none fits"
    assert all(len(c.hypotheses) == 1 for c in found.findings), str(found)
    if found.findings:
        assert found.findings[0].hypotheses[0].name in three


def test_a_number_is_fitted_to_all_inputs() -> None:
    """ε shows in tiny values alone; the first of two inputs has none."""
    spec = small_spec("hf_diffllama")
    both = [cases("natural", 1, spec=spec)[1], cases("tiny_values", 1, spec=spec)[1]]
    outs = [rounded(spec.replace(norm_eps=3.3e-7), c.inputs)["out"] for c in both]
    found = diagnose(outs, spec, [c.inputs for c in both], recipe="float32", max_deviations=1)
    assert found.status == "unique", found
    assert found.findings[0].hypotheses[0].name == "norm_eps"
    assert found.findings[0].values[0] == pytest.approx(3.3e-7, rel=0.02)


def test_deviations_that_inputs_cannot_reveal_are_not_listed() -> None:
    """Without padding, padding seen is no mistake: it is not listed, though it leaves the rows that are right."""
    spec = Spec.preset("hf_diffllama", query_heads=8, key_heads=4, head_dim=16, layer=2)
    inputs = draw(spec, Structure(1, 40, 40), "natural", 3)
    right = rounded(spec, inputs)["out"]
    found = diagnose(right * (1 + 3e-6), spec, inputs, recipe="float32", max_deviations=1)
    assert "no_padding_mask" not in {d.name for c in found.findings for d in c.hypotheses}, str(found)


@pytest.mark.parametrize(
    ("mistake", "name"),
    [("output_not_rescaled", "accumulator"), ("sum_not_rescaled", "denominator"), ("neither_rescaled", "sums")],
)
@pytest.mark.parametrize("tile", [8, pytest.param(16, marks=pytest.mark.slow)])
def test_an_online_softmax_that_forgets_to_rescale_is_named(tile: int, mistake: str, name: str) -> None:
    """Written as a kernel is, a tile after another, in float32."""
    spec = small_spec("hf_diffllama")
    inputs = draw(spec, Structure(1, 40, 40), "natural", 3)
    out = tiled(spec, inputs, tile=tile, mistake=mistake)
    found = diagnose(out, spec, inputs, recipe="float32", max_deviations=1)
    assert found.name == f"{name}_not_rescaled_by_tiles_of_{tile}", str(found)


def test_one_maximum_for_both_maps_is_named_by_its_nan() -> None:
    """Scores of one map near −60, of the other near 60: without any maximum there is neither under- nor overflow."""
    spec = small_spec("hf_diffllama").replace(rope="none")
    inputs = draw(spec, Structure(1, 8, 8), "natural", 3)
    q, k = np.array(inputs["q"]), np.array(inputs["k"])
    k[..., -1] = 1
    q[:, [1, spec.heads + 1], :, -1] = 60 * np.sqrt(spec.head_dim) * np.array([[[-1]], [[1]]])
    inputs |= {"q": q, "k": k}

    def weights(*scores: np.ndarray) -> list[np.ndarray]:
        z = [x.astype(np.float32) for x in scores]
        top = np.maximum(*(x.max(axis=-1, keepdims=True) for x in z))
        e = [np.exp(x - top) for x in z]
        with np.errstate(invalid="ignore"):
            return [x / x.sum(axis=-1, keepdims=True, dtype=np.float32) for x in e]

    out = by_weights(spec, inputs, weights)
    assert np.isnan(out).any()
    found = diagnose(out.astype(np.float32), spec, inputs, recipe="float32", max_deviations=1)
    assert found.name == "one_maximum_for_both_maps", str(found)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_padded_keys_that_are_seen_say_the_tile(dtype: str) -> None:
    """Keys of a tile of 32, of which 24 are there: the others, of zeros, are not masked."""
    spec = small_spec("hf_diffllama").replace(causal="none")
    inputs = draw(spec, Structure(2, 24, 24), "natural", 3, dtype)
    more = {name: np.pad(inputs[name], ((0, 0), (0, 0), (0, 8), (0, 0))) for name in ("k", "v")}
    more |= {"q_positions": np.arange(24)[None], "k_positions": np.arange(32)[None]}
    wrong = rounded(spec, {**inputs, **more}, dtype)["out"]
    found = diagnose(wrong, spec, inputs, recipe=dtype, max_deviations=1)
    assert found.name == "keys padded to tiles of 16 or 32", str(found)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_window_of_tiles_says_which(dtype: str) -> None:
    spec, T = small_spec("hf_diffllama").replace(window=20), 80
    inputs = draw(spec, Structure(1, T, T), "natural", 3, dtype)
    t, s = np.arange(T)[:, None], np.arange(T)[None]
    see = (s <= t) & (s >= (t // 16 * 16 - 19) // 8 * 8)
    wrong = rounded(spec.replace(window=None, causal="none"), {**inputs, "mask": see}, dtype)["out"]
    found = diagnose(wrong, spec, inputs, recipe=dtype, max_deviations=1)
    assert found.name == "window of tiles of 16 queries and 8 keys", str(found)


@pytest.mark.slow
def test_a_window_of_tiles_that_the_last_queries_cannot_distinguish() -> None:
    """The last 16 of 96 queries have the same window with tiles of 1 query and 32 keys."""
    spec, T = Spec.preset("hf_diffllama", query_heads=8, key_heads=4, head_dim=16, layer=3, window=40), 96
    inputs = draw(spec, Structure(1, T, T), "natural", 3, "float32")
    t, s = np.arange(T)[:, None], np.arange(T)[None]
    see = (s <= t) & (s >= (t // 16 * 16 - 39) // 16 * 16)
    wrong = rounded(spec.replace(window=None, causal="none"), {**inputs, "mask": see}, "float32")["out"]
    found = diagnose(wrong, spec, inputs, recipe="float32", max_deviations=1)
    assert found.name == "window of tiles of 16 queries and 16 keys", str(found)


def _lambda(spec: Spec, inputs: Inputs) -> float:
    q1, k1, q2, k2 = (as_float64(spec, inputs)[name] for name in VECTORS)
    return float(np.exp(q1 @ k1) - np.exp(q2 @ k2) + 0.8 - 0.6 * np.exp(-0.3 * spec.layer))


@pytest.mark.parametrize("preset", ["hf_diffllama", "diff_v2", "motif3", "attention"])
def test_an_output_of_zeros_has_no_unique_name(preset: str) -> None:
    """Many pairs of deviations give zeros, and so does an output that the kernel does not write."""
    case = cases("discriminating", 3, spec=small_spec(preset))[1]
    found = diagnose(np.zeros_like(case.dout), case.spec, case.inputs, recipe="float32")
    assert found.name is None
    assert (found.status, found.findings) == (NONE_FITS, ())
    (line,) = found.where
    assert line.startswith("it is exactly zero everywhere, where the truth is not")


def test_unwritten_memory_with_a_signaling_nan_gives_no_warning() -> None:
    case = cases("natural", 3, spec=small_spec("hf_diffllama"))[0]
    out = output_of(case).astype(np.float32)
    out.view(np.uint32)[1, 2, 3] = 0x7FA00000
    found = diagnose(out, case.spec, case.inputs, recipe="float32")
    assert found.where[0] == "it is NaN in token 3 of head 2 of sequence 1, where the truth is finite"


@pytest.mark.parametrize("profile", ["discriminating", "natural"])
def test_a_norm_that_forgets_the_mean(profile: str) -> None:
    """x / √(Σ x² + ε), as it is written: ε is not multiplied by the width."""
    case = cases(profile, 3, spec=small_spec("hf_diffllama"))[1]
    x = truth(case.spec.replace(norm="none", out_scale="none"), case.inputs).out
    root = np.sqrt(np.sum(x * x, axis=-1, keepdims=True) + case.spec.norm_eps)
    start = 0.8 - 0.6 * math.exp(-0.3 * case.spec.layer)
    found = diagnose(((1 - start) * x / root).astype(np.float32), case.spec, case.inputs, recipe="float32")
    assert found.name == "norm_by_sum_of_squares", str(found)


@pytest.mark.parametrize(("preset", "profile"), [("attention", "tiles"), ("hf_diffllama", "extreme")])
def test_a_softmax_without_its_maximum_is_named_by_its_nan(preset: str, profile: str) -> None:
    """So is a merge of partial sums by e^lse, without the largest log-sum-exp."""
    case = cases(profile, 1, spec=small_spec(preset))[0]

    def weights(*seen: np.ndarray) -> list[np.ndarray]:
        with np.errstate(all="ignore"):
            exponentials = [np.exp(z.astype(np.float32)) for z in seen]
            return [(e / e.sum(axis=-1, keepdims=True)).astype(np.float64) for e in exponentials]

    out = by_weights(case.spec, case.inputs, weights)
    assert np.isnan(out).any()
    found = diagnose(out.astype(np.float32), case.spec, case.inputs, recipe="float32", max_deviations=1)
    assert found.name == "maximum_not_subtracted", str(found)
