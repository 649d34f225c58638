"""The right point for every mistake of the catalogue, in float32 and bfloat16; nothing where there is none."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest

from refdiff import layers
from refdiff.backends import ops_for, overlay
from refdiff.model.variants import VARIANTS
from refdiff.oracle import Spec, Trace, first_divergence, trace
from refdiff.oracle.inputs.validation import as_float64
from refdiff.oracle.mistakes import CATALOGUE, Mistake, wrap
from refdiff.oracle.trace.points import Points
from refdiff.oracle.truth.forward import forward
from tests.layers.inputs import says
from tests.model.models import VARIANT_NAMES
from tests.oracle.divergence.runs import LAYER, inputs, model, run
from tests.oracle.trace.test_trace import spec_inputs

# Where a mistake first shows: by its name, else by what it is about, else by its layer. What a layer is made of stands
# before what the layer gives.
BY_NAME = {
    **dict.fromkeys(("attention_over_heads", "one_added_to_denominator"), "scores1"),
    **dict.fromkeys(("first_key_for_both_maps", "second_map_not_scaled"), "scores2"),
    **dict.fromkeys(("lambda_not_used", "lambda_added", "lambda_on_both_maps"), "diff"),
}  # fmt: skip
BY_AXIS = {
    **dict.fromkeys(("pair", "gqa", "maps", "scale"), "scores1"),
    **dict.fromkeys(("mask", "mask off by one", "window"), "lse1"),
    **dict.fromkeys(("order", "clamp", "row sums", "difference", "output layout"), "diff"),
    "conversion": "scores2", "lse base": "attn1", "value layout": "values",
}  # fmt: skip
BY_LAYER = {
    "rope": "q_rope", "lambda_init": "lambda_init", "diff_lambda": "lambda_full", "diff_lambda_v2": "lambda_full",
    "rope_frequencies": "rotary_emb.cos", "rope_cos_sin": "rotary_emb.cos", "rms_norm": "input_layernorm",
}  # fmt: skip
# what rounds as bfloat16 does
ROUNDING = {"exponentials_rounded_to_bfloat16"}
FORWARD = [m for m in CATALOGUE if m.layer in layers.__all__ and not m.layer.endswith("_vjp")]
SAMPLE = [
    "maps_swapped", "output_read_as_tokens_first", "rope_angle_negated", "one_future_key_visible",
    "difference_before_softmax", "no_exponentials", "epsilon_outside_sqrt", "v2_one_lambda_per_layer",
]  # fmt: skip


def variant_of(mistake: Mistake) -> str:
    return "v2" if mistake.name.startswith("v2") else "hf"


def place_of(mistake: Mistake) -> str:
    at = BY_NAME.get(mistake.name) or BY_AXIS.get(mistake.axis) or BY_LAYER[mistake.layer]
    if at.startswith("rotary"):
        return f"model.{at}"
    return f"model.layers.{LAYER}.{at}" if at.endswith("layernorm") else f"model.layers.{LAYER}.self_attn.{at}"


@functools.cache
def prepared(variant: str, dtype: str, whisper: bool = False) -> tuple[Any, Trace]:
    of = model(variant, dtype, whisper=whisper)
    return of, trace(of, inputs())


def clean(dtype: str) -> tuple[dict[str, np.ndarray], Trace]:
    of, ref = prepared("hf", dtype)
    return run(of, inputs(), dtype), ref


@pytest.mark.subjects
@pytest.mark.parametrize(
    ("mistake", "dtype"),
    [
        *(pytest.param(m, "bfloat16", marks=() if m.name in SAMPLE else pytest.mark.slow) for m in FORWARD),
        *(pytest.param(m, "float32", marks=pytest.mark.nightly) for m in FORWARD),
    ],
    ids=str,
)
def test_every_mistake(mistake: Mistake, dtype: str) -> None:
    of, ref = prepared(variant_of(mistake), dtype, mistake.axis == "eps")
    found = first_divergence(run(of, inputs(), dtype, mistake), ref)
    nowhere = mistake.name in ROUNDING and dtype == "bfloat16"
    assert found.path == (None if nowhere else place_of(mistake)), str(found)


@pytest.mark.parametrize("mode", ["local", "free"])
@pytest.mark.parametrize(
    "dtype", ["bfloat16", *(pytest.param(d, marks=pytest.mark.slow) for d in ("float32", "float16"))]
)
@pytest.mark.parametrize("variant", VARIANT_NAMES)
def test_clean_runs(variant: str, dtype: str, mode: str) -> None:
    if VARIANTS[variant].pairing is None:
        of = model(variant, dtype)
        ref = trace(of, inputs())
        mine: Any = {path: x.astype(np.float32) for path, x in ref.items()} if dtype == "float32" else dict(ref)
        found = first_divergence(mine, ref, mode=mode)
    else:
        of, ref = prepared(variant, dtype)
        found = first_divergence(run(of, inputs(), dtype), ref, mode=mode)
        assert found.precision == dtype
    assert not found
    assert found.path is None
    assert {s.status for s in found.stages} <= {"equal", "missing"}
    assert sum(s.status == "equal" for s in found.stages) > 50


@pytest.mark.parametrize("variant", ["hf", "paper", "v2"])
@pytest.mark.parametrize(
    "seed", [14, 42, *(pytest.param(n, marks=pytest.mark.nightly) for n in (12, 29, 40, 41, *range(43, 50)))]
)
def test_clean_runs_of_sharp_models(seed: int, variant: str) -> None:
    """Scores of which the largest is decided by what has been rounded before: a right run may see another key."""
    of = model(variant, "bfloat16", seed=seed, initializer_range=0.5)
    found = first_divergence(run(of, inputs(seed), "bfloat16"), trace(of, inputs(seed)), mode="free")
    assert found.path is None, str(found)


def mistaken(name: str) -> tuple[dict[str, np.ndarray], Trace]:
    mistake = next(m for m in CATALOGUE if m.name == name)
    of, ref = prepared(variant_of(mistake), "float32")
    return run(of, inputs(), "float32", mistake), ref


def test_only_the_point_that_made_the_error_is_charged() -> None:
    mine, ref = mistaken("lambda_added")
    local = first_divergence(mine, ref)
    assert [s.path for s in local.stages if s.status != "equal" and s.status != "missing"] == [local.path]
    free = first_divergence(mine, ref, mode="free")
    assert free.path == local.path
    wrong = [s.path for s in free.stages if s.status == "differs"]
    assert "lm_head" in wrong
    assert len(wrong) > 20


def test_missing_points_are_skipped() -> None:
    """With the points of transformers' modules alone, the whole of attention is one step."""
    mine, ref = mistaken("one_future_key_visible")
    modules = {"q_proj", "k_proj", "v_proj", "groupnorm", "o_proj", "input_layernorm", "down_proj", "lm_head"}
    few = {path: x for path, x in mine.items() if path.rpartition(".")[2] in modules}
    found = first_divergence(few, ref)
    assert found.path == f"model.layers.{LAYER}.self_attn.groupnorm"
    assert {s.path for s in found.stages if s.status != "missing"} == set(few)


def test_differences_in_padding_are_ignored() -> None:
    mine, ref = clean("float32")
    for x in mine.values():
        if x.ndim == 3 and x.shape[1] == 11:
            x[1, :2] += 1  # the two tokens that the mask hides
    assert first_divergence(mine, ref).path != "model.embed_tokens"
    plain = trace(prepared("hf", "float32")[0], inputs()["input_ids"])
    mine = {path: x.astype(np.float32) for path, x in plain.items()}
    mine["model.embed_tokens"][1, 0, 0] += 1
    assert first_divergence(mine, plain).path == "model.embed_tokens"


@pytest.mark.parametrize(
    ("name", "at"),
    [
        ("keys_swapped", "scores1"),
        ("no_lambda_init", "lambda_full"),
    ],
)
def test_attention_alone(name: str, at: str) -> None:
    """Fewer queries than keys, where the triangle and the cache can be wrong."""
    spec = Spec.preset("hf_diffllama", query_heads=8, key_heads=4, head_dim=6, layer=2)
    given = spec_inputs(spec)
    ref = trace(spec, given)
    points: dict[str, np.ndarray] = {}

    def keep(path: str, value: Any, **_: Any) -> Any:
        points[path] = np.array(value, dtype=np.float32)
        return value

    inside = Points({}, keep, whole=False).wrap(ops_for())
    ops = overlay(ops_for(), lambda n, f: inside.diff_attention if n == "diff_attention" else f)
    ops = overlay(ops, wrap(next(m for m in CATALOGUE if m.name == name)))
    exact = as_float64(spec, given)

    def outside(path: str, value: Any, **_: Any) -> Any:
        return value if path.startswith(("scores", "lse", "attn")) else keep(path, value)

    points["out"] = forward(spec, exact, Points(exact, outside).wrap(ops)).astype(np.float32)
    found = first_divergence(points, ref)
    assert found.path == at
    assert found.mode == "local"
    assert not first_divergence(dict(ref), ref, precision="float32")


def as_llama_cpp(ref: Trace) -> dict[str, np.ndarray]:
    """One row of a run as llama.cpp's callback gives it: without batch, tokens before heads, both maps in one."""
    mine = {}
    for path, x in ref.items():
        layer, _, name = path.removeprefix("model.layers.").partition(".self_attn.")
        if name in ("q_rope", "k_rope"):
            mine[f"{name[0].upper()}cur-{layer}"] = x[0].transpose(1, 0, 2)
        if name == "scores1":
            both = np.concatenate([x, ref[path[:-1] + "2"]], 1)
            mine[f"kq-{layer}"] = np.sqrt(6) * both[0]
        if name == "attn1":
            mine[f"kqv-{layer}"] = np.concatenate([x, ref[path[:-1] + "2"]], 1)[0]
        if name == "groupnorm":
            mine[f"attn_sub_norm-{layer}"] = x[0].transpose(1, 0, 2)
        if name == "scaled":
            mine[f"kqv_out-{layer}"] = x[0]
    return {**mine, "inp_embd": ref["model.embed_tokens"][0], "result_output": ref["lm_head"][0]}


def test_a_run_under_names_of_llama_cpp() -> None:
    of, _ = prepared("hf", "float32")
    ref = trace(of, np.arange(1, 8)[None])
    mine = {name: x.astype(np.float32) for name, x in as_llama_cpp(ref).items()}
    found = first_divergence(mine, ref)
    assert not found, str(found)
    assert found.unknown == ()
    assert sum(s.status == "equal" for s in found.stages) == 4 * 8 + 2
    mine["kqv-2"] = mine["kqv-2"] * np.float32(1.01)
    found = first_divergence(mine, ref)
    assert found.path == "model.layers.2.self_attn.attn1"
    assert found.first.what == "equal up to the factor 1.01"


def test_arguments() -> None:
    _, ref = prepared("hf", "float32")
    with says(ValueError, "mode: got 'far', expected one of local, free"):
        first_divergence(ref, ref, mode="far")
    with pytest.raises(ValueError, match=r"precision: got 'fp8', expected auto or one of float64, float32, tf32"):
        first_divergence(ref, ref, precision="fp8")
    with pytest.raises(ValueError, match=r"none of the names in the trace is a point of the reference: it has a, b, "):
        first_divergence({"a": np.ones(3), "b": np.ones(3)}, ref)
    with pytest.raises(ValueError, match=r"; 'atn1', did you mean 'model.layers.0.self_attn.attn1'\?$"):
        first_divergence({"a": np.ones(3), "atn1": np.ones(3)}, ref)


def test_an_alias_that_leads_nowhere() -> None:
    _, ref = prepared("hf", "float32")
    path = "model.layers.1.self_attn.scores1"
    mine = {"mine": ref[path], "model.norm": ref["model.norm"]}
    assert not first_divergence(mine, ref, aliases={"mine": path, "not here": "nowhere"})
    with pytest.raises(
        ValueError, match=rf"aliases: 'mine' is '{path[:-2]}', which is no .*, did you mean '{path[:-1]}[12]'"
    ):
        first_divergence(mine, ref, aliases={"mine": path[:-2]})


def test_precision_decides_what_is_allowed() -> None:
    mine, ref = clean("bfloat16")
    assert first_divergence(mine, ref, precision="float32").path is not None
    widened = {path: x.astype(np.float32) for path, x in mine.items()}
    assert first_divergence(widened, ref).precision == "bfloat16"


def test_a_reference_whose_model_is_not_here() -> None:
    mine, ref = clean("float32")
    with says(ValueError, "the run of the reference cannot be repeated: its model is not here; give the model"):
        first_divergence(mine, Trace(ref.points, ref.inputs, ref.about))
