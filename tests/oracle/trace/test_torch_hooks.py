"""Hooks and folders, with stand-ins for torch; tests/parity has torch and transformers themselves."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from refdiff.oracle import first_divergence, hooks, read_trace, trace
from refdiff.oracle.inputs.files import write_arrays
from refdiff.oracle.trace.torch_hooks import read_debugger_folder
from tests.model.models import ids, small_model

AT = "model.layers.0."


class Module:
    """What `hooks` asks of a torch module."""

    def __init__(self, parts: dict[str, Module] | None = None) -> None:
        self.parts = parts or {}
        self.before: list[Any] = []
        self.after: list[Any] = []

    def named_modules(self) -> Iterator[tuple[str, Module]]:
        yield "", self
        yield from self.parts.items()

    def register_forward_pre_hook(self, hook: Any, *, with_kwargs: bool) -> Any:
        assert with_kwargs
        return self._into(self.before, hook)

    def register_forward_hook(self, hook: Any) -> Any:
        return self._into(self.after, hook)

    def _into(self, hooks: list[Any], hook: Any) -> Any:
        hooks.append(hook)
        return type("Handle", (), {"remove": lambda _: hooks.remove(hook)})()

    def __call__(self, result: Any, *args: Any, **kwargs: Any) -> None:
        for hook in self.before:
            hook(self, args, kwargs)
        for hook in self.after:
            hook(self, args, result)


def test_inputs_and_outputs_of_modules() -> None:
    names = ["model", "model.embed_tokens", "model.rotary_emb", "model.norm", "lm_head"]
    for i in (0, 1):
        names += [f"model.layers.{i}", f"model.layers.{i}.input_layernorm", f"model.layers.{i}.self_attn"]
        names += [f"model.layers.{i}.self_attn.{n}" for n in ("q_proj", "groupnorm", "o_proj")]
        names += [
            f"model.layers.{i}.post_attention_layernorm",
            f"model.layers.{i}.mlp",
            f"model.layers.{i}.mlp.up_proj",
        ]
    whole = Module({name: Module() for name in names})
    parts = whole.parts
    x: Callable[[float], np.ndarray] = lambda value: np.full(2, value, np.float32)  # noqa: E731
    with hooks(whole) as points:
        parts["model.embed_tokens"](x(1))
        parts["model.rotary_emb"]((x(2), x(3)))
        parts[AT + "input_layernorm"](x(4), x(1))
        parts[AT + "self_attn.q_proj"](x(5), x(4))
        parts[AT + "self_attn.groupnorm"](x(7), x(6))
        parts[AT + "self_attn.o_proj"](x(9), x(8))
        parts[AT + "self_attn"]((x(9), x(10)), hidden_states=x(4))
        parts[AT + "post_attention_layernorm"](x(12), x(11))
        parts[AT + "mlp"](x(13), x(12))
        parts["model.layers.0"]((x(14),), x(1))
        parts["model.layers.1"]((x(15), "cache"), hidden_states=x(14))
        parts["model.norm"](x(17), x(16))
        parts["lm_head"](x(18), x(17))
        changed = x(19)
        parts["model.layers.1.self_attn.q_proj"](changed)
        changed += 1
        parts["model"]({"logits": x(0)})
    assert {name: float(value[0]) for name, value in points.items()} == {
        "model.embed_tokens": 1, "model.rotary_emb.cos": 2, "model.rotary_emb.sin": 3, AT + "input_layernorm": 4,
        AT + "self_attn.q_proj": 5, AT + "self_attn.diff": 6, AT + "self_attn.groupnorm": 7,
        AT + "self_attn.scaled": 8, AT + "self_attn.o_proj": 9, AT + "self_attn.probs": 10,
        AT + "post_attention_layernorm.input": 11, AT + "post_attention_layernorm": 12, "model.layers.0": 14,
        "model.layers.1": 16, "model.norm": 17, "lm_head": 18, "model.layers.1.self_attn.q_proj": 19,
    }  # fmt: skip
    assert not any(part.before or part.after for part in parts.values())


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


@pytest.mark.parametrize("name", ["model.rotary_emb", "model.layers.0.self_attn"])
def test_what_is_no_point_is_left_out(name: str) -> None:
    whole = Module({name: Module()})
    with hooks(whole) as points:
        whole.parts[name](("a", None))
        whole.parts[name](np.ones(2))
    assert points == {}
