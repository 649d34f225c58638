"""The first wrong point of runs with mistakes; correct runs diverge nowhere; and what is refused.

Runs are of float32 and bfloat16: the seam of the trace, laid over twice. Inside of the mistake a recorder sees what it
makes of its arguments, outside of it another sees what it gives back. Every value that either sees is rounded, and the
run goes on with that, as a program in that type would.
"""

from __future__ import annotations

import copy
import functools
import re
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import refdiff
from refdiff.backends import ops_for, overlay
from refdiff.model.variants import VARIANTS
from refdiff.model.weights import flatten, nest
from refdiff.oracle import Spec, Trace, cases, first_divergence, trace
from refdiff.oracle.mistakes import CATALOGUE, Mistake, wrap
from refdiff.oracle.trace.points import Points
from tests.layers.inputs import says
from tests.model.models import VARIANT_NAMES, ids, small_config, small_model
from tests.oracle.trace.test_trace import spec_inputs

INSIDE = re.compile(r"(scores|lse|probs|attn)[12]$")
KINDS = {"float32": np.dtype(np.float32), "bfloat16": np.dtype(ml_dtypes.bfloat16), "float16": np.dtype(np.float16)}


def model(variant: str, dtype: str = "float32", *, seed: int = 0, whisper: bool = False, **fields: Any) -> Any:
    """Four layers in which mistakes show: ε counts, rotations have a scale; `whisper`: one layer has small values."""
    yarn = {"rope_type": "yarn", "rope_theta": 500.0, "factor": 4.0, "original_max_position_embeddings": 64}
    sizes = {"num_hidden_layers": 4, "max_position_embeddings": 256, "rms_norm_eps": 0.3, "rope_parameters": yarn}
    config = small_config(variant=variant, **sizes | fields)
    drawn = refdiff.DiffLlamaForCausalLM.from_config(config, seed, dtype="float64", kernels="reference")
    g = np.random.default_rng(seed + 100)
    flat = flatten(drawn.params)
    for name, x in flat.items():
        if name.endswith(("norm.weight", "subln.weight")):
            flat[name] = g.normal(1.0, 0.3, size=x.shape)
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            flat[name] = 1.6 * x
        if whisper and name.endswith("layers.0.self_attn.v_proj.weight"):
            flat[name] = 2e-3 * x
        flat[name] = flat[name].astype(KINDS[dtype]).astype(np.float32)
    return refdiff.DiffLlamaForCausalLM(drawn.config, nest(flat), kernels="reference")


def inputs(seed: int = 0) -> dict[str, Any]:
    """Two rows of eleven tokens, padded on the left, that do not start at position 0."""
    g = np.random.default_rng(seed)
    mask = np.ones((2, 11), dtype=np.int64)
    mask[1, :2] = 0
    return {
        "input_ids": g.integers(1, 53, (2, 11)),
        "attention_mask": mask,
        "position_ids": np.arange(5, 16)[None].repeat(2, 0),
    }


def run(
    of: Any, call: dict[str, Any], dtype: str, mistake: Mistake | None = None, *, maps: bool = False
) -> dict[str, np.ndarray]:
    """The points of a run of `of` in `dtype`, with the mistake in all of its layers."""
    kind = KINDS[dtype]
    inner: dict[str, list[np.ndarray]] = {}
    points: dict[str, np.ndarray] = {}

    def rounded(into: Callable[[str, np.ndarray], None]) -> Callable[..., np.ndarray]:
        def visit(path: str, value: Any, **_: Any) -> np.ndarray:
            stored = np.asarray(value).astype(kind)
            into(path, stored)
            return stored.astype(np.float32)

        return visit

    def keep(path: str, x: np.ndarray) -> None:
        inner.setdefault(path.partition("[")[0], []).append(x)

    within = Points({}, rounded(keep), maps=maps, whole=False)
    ops, seen = ops_for(), within.wrap(ops_for())
    ops = overlay(ops, lambda name, f: seen.diff_attention if name == "diff_attention" else f)
    if mistake is not None:
        ops = overlay(ops, wrap(mistake))
    outer = Points(flatten(of.params), rounded(points.__setitem__), maps=maps, whole=True)
    changed = copy.copy(of)
    changed.ops = outer.wrap(ops)
    changed(**call, use_cache=False)
    for path in [path for path in points if INSIDE.search(path)]:
        del points[path]
        found = inner.get(path.rpartition(".")[2], [])
        if len(found) == of.config.num_hidden_layers:  # a mistake that calls the layer several times shows nothing
            points[path] = found[int(path.split(".")[2])]
    return points


# The first wrong point of runs with mistakes; correct runs diverge nowhere; and what is refused

AT = "layers.0.self_attn."
PLACES = {
    "rope_angle_negated": AT + "q_rope",
    "maps_swapped": AT + "scores1",
    "second_map_not_scaled": AT + "scores2",
    "one_future_key_visible": AT + "lse1",
    "no_exponentials": AT + "lambda_full",
    "difference_before_softmax": AT + "diff",
    "v2_one_lambda_per_layer": AT + "lambda_full",
    "epsilon_outside_sqrt": "layers.0.input_layernorm",
    "positions_without_cache_offset": "rotary_emb.cos",
}
"""Where a mistake first shows; the other mistakes of a kind show at the same point."""


def named(name: str) -> Mistake:
    return next(m for m in CATALOGUE if m.name == name)


def variant_of(mistake: Mistake) -> str:
    return {"diff_heads_paper": "paper", "diff_heads_v2": "v2", "diff_lambda_v2": "v2"}.get(mistake.layer, "hf")


@functools.cache
def prepared(variant: str, dtype: str, whisper: bool = False) -> tuple[Any, Trace]:
    of = model(variant, dtype, whisper=whisper)
    return of, trace(of, inputs())


def clean(dtype: str) -> tuple[dict[str, np.ndarray], Trace]:
    of, ref = prepared("hf", dtype)
    return run(of, inputs(), dtype), ref


@pytest.mark.subjects
@pytest.mark.parametrize("dtype", ["bfloat16", pytest.param("float32", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", PLACES)
def test_a_mistake_shows_at_its_point(name: str, dtype: str) -> None:
    of, ref = prepared(variant_of(named(name)), dtype, named(name).axis == "eps")
    found = first_divergence(run(of, inputs(), dtype, named(name)), ref)
    assert found.path == f"model.{PLACES[name]}", str(found)


def mistaken(name: str) -> tuple[dict[str, np.ndarray], Trace]:
    of, ref = prepared(variant_of(named(name)), "float32")
    return run(of, inputs(), "float32", named(name)), ref


def test_only_the_point_that_made_the_error_is_charged() -> None:
    mine, ref = mistaken("lambda_added")
    local = first_divergence(mine, ref)
    wrong = [s.path for s in local.stages if s.status not in ("equal", "missing")]
    assert wrong == [f"model.layers.{n}.self_attn.diff" for n in range(4)]


def test_missing_points_are_skipped() -> None:
    """With the points of transformers' modules alone, the whole of attention is one step."""
    mine, ref = mistaken("one_future_key_visible")
    modules = {"q_proj", "k_proj", "v_proj", "groupnorm", "o_proj", "input_layernorm", "down_proj", "lm_head"}
    few = {path: x for path, x in mine.items() if path.rpartition(".")[2] in modules}
    found = first_divergence(few, ref)
    assert found.path == f"model.{AT}groupnorm"
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


def test_attention_alone() -> None:
    """Fewer queries than keys."""
    spec = Spec.preset("hf_diffllama", query_heads=8, key_heads=4, head_dim=6, layer=2)
    given = spec_inputs(spec)
    ref = trace(spec, given)
    mine = {path: x.astype(np.float32) for path, x in trace(spec.replace(layer=3), given).items()}
    found = first_divergence(mine, ref)
    assert found.path == "lambda_init"
    assert not first_divergence(dict(ref), ref, precision="float32")


def as_unilm(ref: Trace) -> dict[str, np.ndarray]:
    """A run of one sequence under names of unilm: without batch, tokens before heads, both maps in one."""
    mine = {}
    for path, x in ref.items():
        layer, _, name = path.removeprefix("model.layers.").partition(".self_attn.")
        at = f"decoder.layers.{layer}.self_attn."
        if name in ("q_rope", "k_rope"):
            mine[at + name] = x[0].transpose(1, 0, 2)
        if name in ("scores1", "attn1"):
            mine[at + name[:-1]] = np.concatenate([x, ref[path[:-1] + "2"]], 1)[0]
        if name == "groupnorm":
            mine[f"{at}subln"] = x[0].transpose(1, 0, 2)
        if name == "scaled":
            mine[at + name] = x[0]
    return {**mine, "tok_embeddings": ref["model.embed_tokens"][0], "output": ref["lm_head"][0]}


def test_a_run_in_other_layouts() -> None:
    of, _ = prepared("hf", "float32")
    ref = trace(of, np.arange(1, 8)[None])
    mine = {name: x.astype(np.float32) for name, x in as_unilm(ref).items()}
    found = first_divergence(mine, ref)
    assert not found, str(found)
    assert found.unknown == ()
    assert sum(s.status == "equal" for s in found.stages) == 4 * 8 + 2
    name = "decoder.layers.2.self_attn.attn"
    found = first_divergence({**mine, name: mine[name] * np.float32(1.01)}, ref)
    assert found.path == "model.layers.2.self_attn.attn1"
    assert found.first.what == "0.01 too large or too small on the whole"


def test_arguments() -> None:
    _, ref = prepared("hf", "float32")
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


def test_runs_of_other_inputs_are_told_first() -> None:
    tokens = ids(0, 2, 7)
    ref, other = trace(small_model(), tokens), tokens.copy()
    other[1, 4] += 1
    found = first_divergence(trace(small_model(), other), ref)
    assert found.apart == ("the two runs have different tokens from position 4",)
    assert str(found).splitlines()[0] == found.apart[0]
    assert found.path == "model.embed_tokens"
    masked = trace(small_model(), tokens, attention_mask=np.tri(7, dtype=int)[5:])
    whole = trace(small_model(), tokens, attention_mask=np.ones((2, 7), int))
    assert first_divergence(masked, whole).apart == ("the two runs have different attention_mask",)
    alone = trace(small_model(), tokens[:1])
    assert first_divergence({**alone, "inputs.input_ids": tokens[0]}, alone).apart == ()
    with pytest.raises(ValueError, match=r"of different shapes, \(2, 5\) and \(2, 7\); record the same text in both"):
        first_divergence(trace(small_model(), tokens[:, :5]), ref)
    with pytest.raises(ValueError, match="the trace under test is empty: it has no array of any point"):
        first_divergence({}, ref)


def test_a_spec_is_the_referee_of_two_engines() -> None:
    """Neither dump is refdiff's: both are plain NumPy, and one scales its log-sum-exps."""
    spec = Spec.preset("attention", query_heads=4, key_heads=2, head_dim=16)
    inputs = cases("discriminating", seed=1, spec=spec)[1].inputs
    q, k, v = inputs["q"], *(np.repeat(inputs[name], 2, axis=1) for name in "kv")
    scores = q @ k.swapaxes(2, 3) / 4
    scores = np.where(np.tri(*scores.shape[2:], scores.shape[3] - scores.shape[2], dtype=bool), scores, -np.inf)
    lse = np.logaddexp.reduce(scores, axis=-1)
    dump = {"scores": scores, "lse": lse, "out": np.exp(scores - lse[..., None]) @ v}
    referee = trace(spec, inputs)
    assert first_divergence(dump, referee).path is None
    assert first_divergence({**dump, "lse": lse * np.float32(1.001)}, referee).path == "lse"


# Correct runs diverge nowhere, of drawn and of trained weights, and a small error in them is seen

SLOW = pytest.mark.slow


@pytest.mark.parametrize("dtype", ["bfloat16", *(pytest.param(d, marks=SLOW) for d in ("float32", "float16"))])
@pytest.mark.parametrize("variant", VARIANT_NAMES)
def test_every_variant(variant: str, dtype: str) -> None:
    of = model(variant, dtype)
    ref = trace(of, inputs())
    if VARIANTS[variant].pairing is None:
        mine: Any = {path: x.astype(np.float32) for path, x in ref.items()} if dtype == "float32" else dict(ref)
    else:
        mine = run(of, inputs(), dtype)
    found = first_divergence(mine, ref)
    assert found.path is None, str(found)
    assert {s.status for s in found.stages} <= {"equal", "missing"}
    assert sum(s.status == "equal" for s in found.stages) > 50


@pytest.mark.parametrize("variant", ["hf", "paper", "v2"])
@pytest.mark.parametrize("seed", [14, 42, *(pytest.param(n, marks=pytest.mark.nightly) for n in (12, 29, 40, 41))])
def test_sharp_models(seed: int, variant: str) -> None:
    """Scores of which the largest is decided by what has been rounded before: a right run may see another key."""
    of = model(variant, "bfloat16", seed=seed, initializer_range=0.5)
    found = first_divergence(run(of, inputs(seed), "bfloat16"), trace(of, inputs(seed)))
    assert found.path is None, str(found)


@pytest.mark.parametrize("seed", [pytest.param(n, marks=pytest.mark.nightly if n else SLOW) for n in range(20)])
def test_few_and_equal_tokens(seed: int) -> None:
    """Of equal rows in a batch, padded; flat and sharp maps; with maps."""
    g = np.random.default_rng(seed)
    dtype = ("bfloat16", "float16", "bfloat16", "float32", "bfloat16")[seed % 5]
    width = float(g.choice([0.01, 0.02, 0.06, 0.12, 0.3]))
    of = model(("hf", "paper", "v2")[seed % 3], dtype, seed=seed, initializer_range=width, rms_norm_eps=1e-5)
    ids = g.integers(1, 53, (2, int(g.choice([5, 11, 24, 48]))))
    for call in ({"input_ids": 0 * ids + 7}, {"input_ids": ids[:1].repeat(2, 0)}, inputs(seed)):
        ref, mine = trace(of, call), run(of, call, dtype, maps=True)
        found = first_divergence(mine, ref, precision=dtype)
        assert not found, str(found)


def test_a_factor_near_one_in_bfloat16() -> None:
    of = model("hf", "bfloat16", rms_norm_eps=1e-5, initializer_range=0.3)
    call = {"input_ids": np.random.default_rng(0).integers(1, 53, (2, 24))}
    mine, ref, path = run(of, call, "bfloat16"), trace(of, call), "model.layers.0.self_attn.groupnorm"
    assert not first_divergence(mine, ref)
    wrong = {**mine, path: (1.011 * mine[path].astype(np.float32)).astype(KINDS["bfloat16"])}
    found = first_divergence(wrong, ref)
    assert found.path == path
    assert found.first.what.startswith("0.011 too large")


# Trained weights, whose products add up where those of drawn ones cancel


def bundled(dtype: str, kernels: str) -> Any:
    return refdiff.DiffLlamaForCausalLM.from_pretrained("bundled", dtype=dtype, kernels=kernels)


@functools.cache
def reference() -> tuple[np.ndarray, Trace]:
    text = "The fox said to the wolf, come with me into the wood"
    ids = refdiff.Tokenizer.from_pretrained("bundled")([text], return_tensors="np")["input_ids"]
    return ids, trace(bundled("float64", "reference"), ids)


def worst(mine: Any) -> float:
    """The largest share of what is allowed; nothing diverges."""
    found = first_divergence(mine, reference()[1])
    assert found.path is None, str(found)
    return max(s.ratio for s in found.stages)


def test_trained_weights() -> None:
    ids, _ = reference()
    assert 0.05 < worst(trace(bundled("float32", "fast"), ids)) < 0.8
    for dtype in ("bfloat16", "float16"):
        assert worst(run(bundled("float32", "reference"), {"input_ids": ids}, dtype)) < 0.8


@pytest.mark.parametrize("point", ["mlp.gate_proj", "mlp.down_proj"])
def test_a_mistake_of_a_hundred_roundoffs_is_seen(point: str) -> None:
    """A row off by 10⁻⁵: what is allowed for a sum of 192 or 464 terms is not half of that."""
    mine, path = dict(trace(bundled("float32", "fast"), reference()[0])), f"model.layers.3.{point}"
    mine[path] = mine[path].copy()
    mine[path][0, 4] *= np.float32(1 + 1e-5)
    found = first_divergence(mine, reference()[1])
    assert (found.path, found.first.row) == (path, (0, 4))
