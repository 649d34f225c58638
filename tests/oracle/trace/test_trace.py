"""Traces of models and specs: what they hold, how they are run again, others' names of points, and files."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import refdiff
from refdiff.errors import CheckpointError
from refdiff.layers import softmax
from refdiff.oracle import Spec, Trace, first_divergence, read_trace, trace, truth
from refdiff.oracle.inputs.arrays import write_arrays
from refdiff.oracle.trace.point_names import canonical_names
from refdiff.oracle.trace.trace import FORMAT
from tests.model.models import ids, small_model
from tests.oracle.example_inputs import draw
from tests.tolerances import FLOAT64, close


def run_again(of: Trace, **options: bool) -> dict[str, np.ndarray]:
    points: dict[str, np.ndarray] = {}

    def keep(path: str, value: np.ndarray, **_: object) -> np.ndarray:
        points[path] = np.array(value)
        return value

    of.run(keep, **options)
    return points


@pytest.mark.parametrize("kernels", ["fast", "reference"])
def test_a_models_run(kernels: str) -> None:
    model, tokens = small_model(kernels=kernels), ids(0, 2, 5)
    ops = model.ops
    traced = trace(model, tokens)
    assert model.ops is ops
    close(traced["lm_head"], model(tokens).logits, FLOAT64)
    assert not [path for path in traced if "probs" in path]
    assert traced.about == {"model": None, "class": "DiffLlamaForCausalLM", "dtype": "float64",
                            "config": json.loads(json.dumps(model.config.to_dict()))}  # fmt: skip
    assert traced.inputs.keys() == {"input_ids"}
    with_maps = trace(model, tokens, maps=True)
    close(with_maps["model.layers.0.self_attn.probs1"].sum(-1), np.ones((2, 4, 5)), FLOAT64)


def test_other_arguments() -> None:
    model, tokens = small_model(), ids(0, 2, 5)
    mask = np.array([[1, 1, 1, 1, 1], [0, 0, 1, 1, 1]])
    one = trace(model, tokens, attention_mask=mask)
    other = trace(model, {"input_ids": tokens.tolist(), "attention_mask": mask}, labels=None)
    assert all(np.array_equal(x, other[path]) for path, x in one.items())
    close(one["lm_head"], model(tokens, attention_mask=mask).logits, FLOAT64)
    embedded = trace(model, inputs_embeds=one["model.embed_tokens"], attention_mask=mask)
    assert "model.embed_tokens" not in embedded
    close(embedded["lm_head"], one["lm_head"], FLOAT64)


def test_is_run_again_in_float64() -> None:
    exact = small_model()
    flat = refdiff.model.weights.flatten(exact.params)
    single = refdiff.DiffLlamaForCausalLM(
        exact.config, refdiff.model.weights.nest({n: x.astype(np.float32) for n, x in flat.items()})
    )
    traced = trace(single, ids(0, 2, 5))
    assert traced["lm_head"].dtype == np.float32
    again = run_again(traced)
    assert again["lm_head"].dtype == np.float64
    assert set(again) >= set(traced)
    assert 0 < np.abs(again["lm_head"] - traced["lm_head"]).max() < 1e-4
    assert {str(x.dtype) for x in again.values()} == {"float64"}
    wide = {n: x.astype(np.float32).astype(np.float64) for n, x in flat.items()}
    right = refdiff.DiffLlamaForCausalLM(exact.config, refdiff.model.weights.nest(wide), kernels="reference")
    close(again["lm_head"], right(ids(0, 2, 5)).logits, FLOAT64)


def test_values_by_hand() -> None:
    model = small_model()
    points = run_again(trace(model, ids(0, 2, 5)), maps=True)
    at = "model.layers.1.self_attn."
    q, k, v = points[at + "q_rope"], points[at + "k_rope"], points[at + "values"]
    scores = np.einsum("btd,bsd->bts", q[:, 5], k[:, 2]) / np.sqrt(6)  # pair 1: heads 1 and 1 + 4, keys 0 and 0 + 2
    close(points[at + "scores2"][:, 1], scores, FLOAT64)
    seen = np.tril(np.ones((5, 5), bool))
    close(np.exp(points[at + "lse2"][:, 1]), np.where(seen, np.exp(scores), 0).sum(-1), FLOAT64)
    close(points[at + "attn2"][:, 1], softmax(scores, seen) @ v[:, 0], FLOAT64)
    lambda_ = points[at + "lambda_full"]
    close(points[at + "diff"], points[at + "attn1"] - lambda_ * points[at + "attn2"], FLOAT64)
    close(points["model.layers.1"], points["model.layers.2.post_attention_layernorm.input"]
          - points["model.layers.2.self_attn.o_proj"], FLOAT64 * 10)  # fmt: skip


SPEC = Spec.preset("hf_diffllama", query_heads=4, key_heads=2, head_dim=6, layer=1)


def spec_inputs(spec: Spec = SPEC) -> dict[str, np.ndarray]:
    """More keys than queries, in float32."""
    return draw(spec, 1, dtype=np.float32, T=3)


def test_attention_of_a_spec() -> None:
    given = spec_inputs()
    traced = trace(SPEC, given)
    right = truth(SPEC, given, want=("out", "lse1", "lse2", "diff", "lambda_full"))
    for name in ("out", "lse1", "lse2", "diff", "lambda_full"):
        close(traced[name], getattr(right, name), FLOAT64)
    assert traced.about == {"spec": SPEC.to_dict()}
    again = run_again(traced)
    close(again["out"], traced["out"], FLOAT64)
    assert list(again) == list(traced)


def test_log_sum_exps_have_the_base_of_the_spec() -> None:
    given, spec = spec_inputs(), SPEC.replace(lse_base="2")
    traced, right = trace(spec, given), truth(spec, given, want=("lse1", "lse2"))
    assert traced.lse_base == "2"
    for name in ("lse1", "lse2"):
        close(traced[name], getattr(right, name), FLOAT64)
        close(run_again(traced)[name], getattr(right, name), FLOAT64)


# What others call the points

POINTS = list(trace(small_model(), ids(0, 1, 3)))
A = "model.layers.1.self_attn."


@pytest.mark.parametrize(
    ("name", "path"),
    [
        # transformers, and below another prefix or none
        ("model.layers.1.self_attn.q_proj", A + "q_proj"),
        ("DiffLlamaForCausalLM.model.layers.1.self_attn.groupnorm", A + "groupnorm"),
        ("lm_head", "lm_head"),
        # unilm
        ("decoder.layers.1.self_attn.subln", A + "groupnorm"),
        ("decoder.layers.1.self_attn_layer_norm", "model.layers.1.input_layernorm"),
        # timm
        ("blocks.1.attn.sub_norm", A + "groupnorm"),
        ("blocks.1.norm2", "model.layers.1.post_attention_layernorm"),
        # vLLM
        ("model.layers.1.self_attn.attn12", A + "attn12"),
        # Llama's own
        ("tok_embeddings", "model.embed_tokens"),
        ("output", "lm_head"),
        # a second time
        (A + "scores1[1]", A + "scores1[1]"),
    ],
)
def test_names(name: str, path: str) -> None:
    assert canonical_names([name], POINTS, {}) == {name: path}


@pytest.mark.parametrize(
    ("name", "path"),
    [("scores1", "scores1"), ("attn.sub_norm", "groupnorm"), ("layers.7.self_attn.lse2", "lse2"),
     ("lse1[1]", "lse1[1]"), ("subln[1]", "groupnorm[1]"), ("layers.7.self_attn.lse2[1]", "lse2[1]"),
     ("out", "out")],
)  # fmt: skip
def test_names_of_the_attention_alone(name: str, path: str) -> None:
    points = list(trace(SPEC, spec_inputs()))
    found = canonical_names([name], points, {})[name]
    assert found.removeprefix("self_attn.") == path


def test_own_names() -> None:
    table = {"mine": A + "diff", "blocks.0.attn.x": "layers.0.self_attn.attn1"}
    assert canonical_names([*table, "norm1"], POINTS, table) == {
        "mine": A + "diff",
        "blocks.0.attn.x": "model.layers.0.self_attn.attn1",
        "norm1": "model.norm1",
    }


# Traces from files and folders; those of transformers itself are in tests/parity


@pytest.fixture
def model(tmp_path: Path) -> Any:
    """A model that was loaded from a folder, which its traces name."""
    small_model().save_pretrained(tmp_path / "model")
    return refdiff.DiffLlamaForCausalLM.from_pretrained(tmp_path / "model")


def test_a_spec_is_run_again_from_its_file(tmp_path: Path) -> None:
    traced = trace(SPEC, spec_inputs())
    traced.write(tmp_path / "run.safetensors")
    close(run_again(read_trace(tmp_path / "run.safetensors"))["out"], traced["out"], FLOAT64)


def test_a_model_is_run_again_where_it_is_there(tmp_path: Path, model: Any) -> None:
    traced = trace(model, ids(0, 2, 5))
    traced.write(tmp_path / "run.safetensors")
    close(run_again(read_trace(tmp_path / "run.safetensors"))["lm_head"], traced["lm_head"], FLOAT64 * 10)
    (tmp_path / "model").rename(tmp_path / "elsewhere")
    read = read_trace(tmp_path / "run.safetensors")
    assert read.run is None
    for given in (tmp_path / "elsewhere", str(tmp_path / "elsewhere"), model):
        read = read_trace(tmp_path / "run.safetensors", model=given)
        close(run_again(read)["lm_head"], traced["lm_head"], FLOAT64 * 10)
        assert not first_divergence(traced, tmp_path / "run.safetensors", model=given)


def test_a_run_of_16_bit_weights_is_one_of_float32(tmp_path: Path) -> None:
    small_model().save_pretrained(tmp_path / "model", dtype="bfloat16")
    model = refdiff.DiffLlamaForCausalLM.from_pretrained(tmp_path / "model")
    trace(model, ids(0, 2, 5)).write(tmp_path / "run.safetensors")
    found = first_divergence(tmp_path / "run.safetensors", tmp_path / "run.safetensors")
    assert (found.path, found.precision) == (None, "float32")


@pytest.mark.parametrize("change", ["config", "folder", "file"])
def test_a_trace_names_the_folder_of_its_own_model_alone(tmp_path: Path, model: Any, change: str) -> None:
    traced = trace(model, ids(0, 2, 5))
    about = {**traced.about}
    if change == "config":
        about["config"] = {**about["config"], "rms_norm_eps": 1e-3}
    else:
        about["model"] = str(tmp_path if change == "folder" else tmp_path / "model" / "config.json")
    dataclasses.replace(traced, about=about).write(tmp_path / "run.safetensors")
    assert read_trace(tmp_path / "run.safetensors").run is None


@pytest.mark.parametrize(
    "about",
    [
        "", "[" * 100_000, '{"spec": {"x": 1}}', '{"model": "x\\u0000"}',
        '{"model": "FOLDER", "config": CONFIG, "class": "Tokenizer"}',
    ],
    ids=range(5),
)  # fmt: skip
def test_a_trace_that_says_nonsense(tmp_path: Path, model: Any, about: str) -> None:
    config = json.dumps(model.config.to_dict())
    about = about.replace("FOLDER", str(tmp_path / "model")).replace("CONFIG", config)
    path = tmp_path / "run.safetensors"
    write_arrays(path, {"a": np.ones(2)}, {"format": FORMAT, "about": about, "order": '["a"]'})
    try:
        assert read_trace(path).run is None
    except CheckpointError as error:
        assert "run.safetensors: not a trace that this version writes" in str(error)  # noqa: PT017
    write_arrays(path, {"a": np.ones(2)}, {"format": FORMAT, "about": "{}", "order": '["b"]'})
    with pytest.raises(CheckpointError, match=r"run\.safetensors: not a trace that this version writes: KeyError: 'b'"):
        read_trace(path)


def test_inputs_that_the_model_does_not_take_name_the_file(tmp_path: Path, model: Any) -> None:
    path, traced = tmp_path / "run.safetensors", trace(model, [[1, 2, 3]])
    for bad in (np.ones((1, 3), np.float32), np.full((1, 3), 10**6), np.ones((1, 3, 2), np.int64)):
        dataclasses.replace(traced, inputs={**traced.inputs, "input_ids": bad}).write(path)
        with pytest.raises(CheckpointError, match=r"run\.safetensors: its run cannot be repeated: "):
            first_divergence(path, path)


def test_a_trace_replaces_files_alone() -> None:
    with pytest.raises(OSError, match="not a regular file, but a device; name another file"):
        trace(SPEC, spec_inputs()).write("/dev/full")
