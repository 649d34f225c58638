"""A folder as transformers' debugger writes it; tests/parity has hooks, torch and transformers themselves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from refdiff.oracle import first_divergence, read_trace, trace
from refdiff.oracle.inputs.arrays import write_arrays
from refdiff.oracle.trace.trace import read_debugger_folder
from tests.model.models import ids, small_model


def dump(folder: Path, points: dict[str, Any]) -> None:
    """Write points as transformers' debugger does: one file for each input and output of a module without parts."""
    folder.mkdir()
    (folder / "DiffLlamaForCausalLM_debug_tree_SUMMARY.json").write_text("{}")
    for path, x in points.items():
        name = f"{path}_outputs"
        if path.endswith((".cos", ".sin")):
            name = path.replace(".cos", "_outputs_0").replace(".sin", "_outputs_1")
        elif path.endswith(".input"):
            name = path.removesuffix(".input") + "_inputs_args_0"
        elif path.endswith(".diff"):
            name = path.replace(".diff", ".groupnorm") + "_inputs_args_0"
        elif path.endswith(".scaled"):
            name = path.replace(".scaled", ".o_proj") + "_inputs_args_0"
        elif path.rpartition(".")[0].endswith("layers"):
            last = path == "model.layers.2"
            name = "model.norm_inputs_args_0" if last else f"model.layers.{int(path[-1]) + 1}_inputs_args_0"
        elif path.rpartition(".")[2] not in MODULES:
            continue
        write_arrays(folder / f"DiffLlamaForCausalLM.{name}.safetensors", {"data": x}, {})
    write_arrays(folder / "DiffLlamaForCausalLM_inputs_kwargs_input_ids.safetensors", {"data": np.ones(2)}, {})


MODULES = {
    "embed_tokens", "input_layernorm", "q_proj", "k_proj", "v_proj", "groupnorm", "o_proj", "post_attention_layernorm",
    "gate_proj", "act_fn", "up_proj", "down_proj", "norm", "lm_head",
}  # fmt: skip


def test_debugger_folder(tmp_path: Path) -> None:
    ref = trace(small_model(), ids(0, 2, 5))
    dump(tmp_path / "run", dict(ref))
    points = read_debugger_folder(tmp_path / "run")
    inside = ("values", "q_rope", "k_rope", "lambda_init", "lambda_full", "scores", "lse", "attn1", "attn2")
    assert set(points) == {path for path in ref if not path.rpartition(".")[2].startswith(inside)}
    assert all(np.array_equal(x, ref[path]) for path, x in points.items())
    assert not first_divergence(tmp_path / "run", ref)
    wrong = "DiffLlamaForCausalLM.model.layers.1.mlp.up_proj_outputs.safetensors"
    write_arrays(tmp_path / "run" / wrong, {"data": ref["model.layers.1.mlp.up_proj"] * 1.01}, {})
    assert first_divergence(read_trace(tmp_path / "run"), ref).path == "model.layers.1.mlp.up_proj"
