"""Resolve a spec: a `Spec` as it is, or a preset by name with dimensions read from the shapes of the inputs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from refdiff.oracle.inputs import VECTORS, is_layer
from refdiff.oracle.inputs.arrays import any_array
from refdiff.oracle.spec import Spec
from refdiff.oracle.spec.presets import merge_preset
from refdiff.oracle.spec.validation import DIMENSIONS


def resolve_spec(spec: Any, inputs: Any = None) -> Spec:
    """Return `spec`, or the preset of that name with the dimensions of the inputs.

    Without inputs, the preset has the dimensions of `small_spec`. All other fields are the preset's, such as `window`.
    No array shows the layer, which is 0.

    Raises:
        TypeError: `spec` is neither a Spec nor a name, or `inputs` is not a mapping.
        ValueError: no preset has that name, or the shapes of the inputs give no dimensions that it can have.
    """
    if not isinstance(spec, Spec | str):
        raise TypeError(
            f"spec: got type {type(spec).__name__}, expected a Spec or a preset's name; outputs come before the spec"
        )
    if inputs is not None and not isinstance(inputs, Mapping):
        hint = ": pass case.inputs, and dout=case.dout for gradients" if hasattr(inputs, "inputs") else ""
        raise TypeError(f"inputs: got type {type(inputs).__name__}, expected a mapping from names to arrays{hint}")
    if isinstance(spec, Spec):
        return spec
    if inputs is None:
        return small_spec(spec)
    fields, read = merge_preset({"preset": spec}), {}
    try:
        read = infer_dimensions(fields, inputs)
        return Spec.preset(spec, **read)
    except ValueError as error:
        fix = f"give Spec.preset({spec!r}, query_heads=H, key_heads=K, head_dim=d)"
        raise ValueError(f"spec is {spec!r}: {error}{_format_dimensions(read)}; {fix}") from error


def describe_preset(name: str, spec: Spec) -> str:
    """Describe the spec that `resolve_spec` made of a preset's name and the shapes of the inputs."""
    dims = {name: getattr(spec, name) for name in ("query_heads", "key_heads", "head_dim", "v_head_dim", "layer")}
    fields = ", ".join(f"{field}={value}" for field, value in dims.items() if value is not None)
    return f"spec {name!r} is Spec.preset({name!r}, {fields}), by the shapes of the inputs"


def _format_dimensions(read: Mapping[str, int]) -> str:
    if not read:
        return ""
    return f" ({', '.join(f'{name}={n}' for name, n in read.items())} by the inputs' shapes, heads before tokens)"


def small_spec(preset: str) -> Spec:
    """Return a preset with small dimensions that show every choice: GQA where it has it, layer 2, heads of 16."""
    dims = {"query_heads": 12, "key_heads": 4, "head_dim": 16}
    if preset in ("gda", "motif3"):
        dims["query_heads"] = 20
    if preset == "motif3":
        dims |= {"v_head_dim": 10, "window": 11}
    if preset == "timm":
        dims["key_heads"] = 12
    if preset in ("diff_v2", "attention"):
        dims["key_heads"] = 3
    return Spec.preset(preset, **dims, layer=2)


def infer_dimensions(fields: Mapping[str, Any], inputs: Mapping[str, Any]) -> dict[str, int]:
    """Return those of query_heads, key_heads, head_dim and v_head_dim that `fields` lacks, from the inputs' shapes.

    A projection of a layer has heads × head_dim rows. head_dim is the length of a λ vector or half of that of the
    norm's weight; or the number of heads follows from the rows of `lambda_proj`.

    Raises:
        ValueError: an array that is needed is missing or has another shape, or the shapes leave a dimension open.
    """
    found: dict[str, int] = {}
    if missing := [name for name in DIMENSIONS if name not in fields]:
        read = _layer_dimensions(fields, inputs) if is_layer(inputs) else _core_dimensions(inputs)
        found = {name: read[name] for name in missing}
    return found | _value_dimension({**fields, **found}, inputs)


def _value_dimension(fields: Mapping[str, Any], inputs: Mapping[str, Any]) -> dict[str, int]:
    """Return v_head_dim if v has the right number of heads, and their width is not the usual one."""
    values, K = fields.get("values", "halves"), fields["key_heads"]
    heads = K if values in ("halves", "interleaved") or fields.get("keys") == "shared" else K // 2
    usual = fields["head_dim"] * (2 if values == "wide" else 1)
    name = next((name for name in ("v", "v_pages", "v_proj.weight") if name in inputs), "")
    shape = _array_shape(inputs, name) if name else ()
    if "v_head_dim" in fields or not isinstance(heads, int) or heads < 1:
        return {}
    width = 0
    if len(shape) == 4 and shape[1] == heads:
        width = shape[3]
    elif len(shape) == 2 and shape[0] % heads == 0:
        width = shape[0] // heads
    return {"v_head_dim": width} if width not in (0, usual) else {}


def _core_dimensions(inputs: Mapping[str, Any]) -> dict[str, int]:
    keys, wanted = ("k_pages", "(P, K, p, d)") if "k_pages" in inputs else ("k", "(B, K, S, d)")
    q, k = _shape(inputs, "q", "(B, H, T, d)", 4), _shape(inputs, keys, wanted, 4)
    return {"query_heads": q[1], "key_heads": k[1], "head_dim": q[3]}


def _layer_dimensions(fields: Mapping[str, Any], inputs: Mapping[str, Any]) -> dict[str, int]:
    rows = {name: _shape(inputs, f"{name}_proj.weight", "(rows, D)", 2)[0] for name in ("q", "k")}
    d = _head_width(fields, inputs, rows["q"])
    for name, n in rows.items():
        if d < 1 or n % d:
            raise ValueError(f"{name}_proj.weight has {n} rows, which is not a multiple of the head width {d}")
    return {"query_heads": rows["q"] // d, "key_heads": rows["k"] // d, "head_dim": d}


def _head_width(fields: Mapping[str, Any], inputs: Mapping[str, Any], rows: int) -> int:
    """Return head_dim of a layer whose `q_proj` has this many rows."""
    if isinstance(d := fields.get("head_dim"), int):
        return d
    if isinstance(heads := fields.get("query_heads"), int) and heads > 0:
        return rows // heads
    if name := next((name for name in VECTORS if name in inputs), ""):
        return _shape(inputs, name, *(("(h, d)", 2) if fields.get("lambda_per_head") else ("(d,)", 1)))[-1]
    ratio = fields.get("ratio", 1)
    if "lambda_proj.weight" in inputs and isinstance(ratio, int) and ratio > 0:
        signals = _shape(inputs, "lambda_proj.weight", "(h, D)", 2)[0]
        return rows * ratio // max(signals * (ratio + 1), 1)
    if "norm_weight" in inputs:
        e = _shape(inputs, "norm_weight", *(("(h, e)", 2) if fields.get("norm_per_head") else ("(e,)", 1)))[-1]
        return e if fields.get("values") == "single" else e // 2
    raise ValueError("the arrays of this layer do not say how wide a head is: give head_dim")


def _shape(inputs: Mapping[str, Any], name: str, wanted: str, axes: int) -> tuple[int, ...]:
    if name not in inputs:
        raise ValueError(f"the inputs lack {name} {wanted}")
    shape = _array_shape(inputs, name)
    if len(shape) != axes:
        raise ValueError(f"{name}: got shape {shape}, expected {wanted}")
    return shape


def _array_shape(inputs: Mapping[str, Any], name: str) -> tuple[int, ...]:
    x = inputs[name]
    return tuple(x.shape if hasattr(x, "shape") else any_array(x, name).shape)
