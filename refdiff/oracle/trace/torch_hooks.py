"""Inputs and outputs of a module → points: what transformers' debugger writes, and what hooks on a live module see."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from refdiff.errors import CheckpointError
from refdiff.oracle.inputs.arrays import any_array, read_arrays

_LAYER = re.compile(r"(.*\blayers)\.(\d+)$")
_DUMP = re.compile(r"([^.]+)\.(.+)_(inputs_args_0|inputs_kwargs_hidden_states|inputs_kwargs_x|outputs|outputs_\d+)")


def read_debugger_folder(folder: Path) -> dict[str, NDArray[Any]]:
    """Read a folder that `model_addition_debugger_context(model, debug_path=folder, use_repr=False)` has written.

    Raises:
        CheckpointError: it is another folder, or holds no tensors: written with use_repr=True, the default, it has the
            first and last few numbers of each as text.
    """
    if not any(folder.glob("*_debug_tree_*.json")):
        raise CheckpointError(
            f"{folder}: no folder of transformers' model_addition_debugger_context: no *_debug_tree_*.json in it"
        )
    seen: dict[str, dict[str, Any]] = {}
    for path in sorted(folder.glob("*.safetensors")):
        if match := _DUMP.fullmatch(path.stem):
            _, module, what = match.groups()
            seen.setdefault(module, {})["inputs" if what.startswith("inputs") else what] = path
    if not seen:
        raise CheckpointError(
            f"{folder}: no tensors: let model_addition_debugger_context write them with use_repr=False; by default it "
            "prints a few numbers of each"
        )
    points: dict[str, NDArray[Any]] = {}
    last = _last_layer(seen)
    for module, files in seen.items():
        for what, path in files.items():
            if point := _point(module, what, last):
                arrays, _ = read_arrays(path, folder=folder)
                if "data" not in arrays:
                    raise CheckpointError(
                        f"{path}: no tensor is called data, as transformers' debugger names it; write it again"
                    )
                points[point] = arrays["data"]
    return points


@contextmanager
def hooks(module: Any) -> Iterator[dict[str, NDArray[Any]]]:
    """Record a torch module while it runs: `with hooks(model) as mine: model(ids)`, then `first_divergence(mine, ref)`.

    Takes the outputs of its modules, and the inputs of those before which something is computed outside of any module.
    """
    points: dict[str, NDArray[Any]] = {}
    names = dict(module.named_modules())
    last = _last_layer(names)

    def keep(name: str, what: str, value: Any) -> None:
        point = _point(name, what, last)
        if point and hasattr(value, "__dlpack__") and hasattr(value, "shape"):
            points[point] = any_array(value, point).copy()

    def before(name: str, _: Any, args: Any, kwargs: Any) -> None:
        for value in (*args[:1], *(kwargs[key] for key in ("hidden_states", "x") if key in kwargs)):
            keep(name, "inputs", value)

    def after(name: str, _: Any, args: Any, out: Any) -> None:
        several = isinstance(out, tuple | list)
        for i, value in enumerate(out if several else (out,)):
            keep(name, f"outputs_{i}" if several else "outputs", value)

    handles = []
    for name, part in names.items():
        if name:
            handles.append(part.register_forward_pre_hook(partial(before, name), with_kwargs=True))
            handles.append(part.register_forward_hook(partial(after, name)))
    try:
        yield points
    finally:
        for handle in handles:
            handle.remove()


def _last_layer(modules: Any) -> int:
    return max((int(m[2]) for name in modules if (m := _LAYER.match(name))), default=-1)


def _point(module: str, what: str, last_layer: int) -> str | None:
    """The point that an input or output of a module is."""
    head, _, name = module.rpartition(".")
    layer = _LAYER.match(module)
    if what == "inputs":
        if layer:
            return f"{layer[1]}.{int(layer[2]) - 1}" if int(layer[2]) else None
        if name == "norm" and not head.endswith(("attn", "mlp")):
            return f"{head}.layers.{last_layer}".lstrip(".")
        if name == "embed_tokens":
            return "inputs.input_ids"
        before = {"groupnorm": "diff", "subln": "diff", "sub_norm": "diff", "o_proj": "scaled", "out_proj": "scaled"}
        if name in before:
            return f"{head}.{before[name]}"
        return f"{module}.input" if name == "post_attention_layernorm" else None
    if name == "rotary_emb":
        return {"outputs_0": f"{module}.cos", "outputs_1": f"{module}.sin"}.get(what)
    if name in ("self_attn", "attn"):
        return f"{module}.probs" if what == "outputs_1" else None
    if name == "mlp":
        return None  # what down_proj gives
    return module if what in ("outputs", "outputs_0") else None
