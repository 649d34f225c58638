"""Resolve a spec: a `Spec` as it is, or a preset by name with dimensions read from the shapes of the inputs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import MISSING, fields
from types import SimpleNamespace
from typing import Any

from refdiff.oracle.inputs import is_layer, shapes
from refdiff.oracle.inputs.arrays import any_array
from refdiff.oracle.spec import Spec
from refdiff.oracle.spec.presets import merge_preset
from refdiff.oracle.spec.validation import DIMENSIONS, parse_fields


def resolve_spec(spec: Any, inputs: Any = None) -> Spec:
    """Return `spec`, or the preset of that name with the dimensions of the inputs.

    Without inputs, the preset has the dimensions of `small_spec`. A text may change other fields, such as
    "hf_diffllama,window=64,layer=2", or be a JSON object of fields. No array shows the layer, which is 0 unless the
    text says it.

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
    if spec.lstrip().startswith("{"):
        return Spec.of(json.loads(spec))
    name, *words = spec.split(",")
    given: dict[str, Any] = {"preset": name.strip(), **parse_fields(words)}
    if inputs is None:
        return Spec.of({**small_spec(name.strip()).to_dict(), **given})
    preset, read = merge_preset(given), {}
    try:
        read = infer_dimensions(preset, inputs)
        return Spec.of({**given, **read})
    except ValueError as error:
        said = ", ".join(f"{name}={n}" for name, n in read.items())
        said = f" ({said} by the inputs' shapes, heads before tokens)" if said else ""
        fix = f"give Spec.preset({name!r}, query_heads=H, key_heads=K, head_dim=d)"
        raise ValueError(f"spec is {spec!r}: {error}{said}; {fix}") from error


def describe_preset(name: str, spec: Spec) -> str:
    """Describe the spec that `resolve_spec` made of a preset's name and the shapes of the inputs."""
    dims = {name: getattr(spec, name) for name in (*DIMENSIONS, "v_head_dim", "layer")}
    said = ", ".join(f"{field}={value}" for field, value in dims.items() if value is not None)
    is_it = f"has {said}" if "," in name else f"is Spec.preset({name!r}, {said})"
    return f"spec {name!r} {is_it}, by the shapes of the inputs"


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


def infer_dimensions(given: Mapping[str, Any], inputs: Mapping[str, Any]) -> dict[str, int]:
    """Return those of query_heads, key_heads, head_dim and v_head_dim that `given` lacks, from the inputs' shapes.

    A projection of a layer has heads × head_dim rows. head_dim is the length of a λ vector, or given.

    Raises:
        ValueError: an array that is needed is missing or has another shape, or the shapes leave a dimension open.
    """
    spec = SimpleNamespace(**{f.name: f.default for f in fields(Spec) if f.default is not MISSING} | {**given})
    missing = [name for name in DIMENSIONS if name not in given]
    n = _axis_lengths(spec, inputs, bool(missing))
    found = {name: n[a] for name, a in zip(DIMENSIONS, "HKd", strict=True) if name in missing}
    K, d = (found.get(name, given.get(name)) for name in ("key_heads", "head_dim"))
    heads = K if spec.values in ("halves", "interleaved") or spec.keys == "shared" else (K or 0) // 2
    width = n.get("Vw", 0) // heads if heads and n.get("Vw", 0) % heads == 0 else 0
    width = n.get("w", width) if n.get("V", heads) == heads else 0
    usual = (d or 0) * (2 if spec.values == "wide" else 1)
    return found if "v_head_dim" in given or width in (0, usual) else {**found, "v_head_dim": width}


def _axis_lengths(spec: Any, inputs: Mapping[str, Any], complete: bool) -> dict[str, int]:
    """Return the lengths of axes by letter from the inputs' shapes; H, K and d too if they must be `complete`."""
    layer, n = is_layer(inputs), dict[str, int]()
    keys = "k_pages" if "k_pages" in inputs else "k"
    needed = ("q_proj.weight", "k_proj.weight") if layer else ("q", keys)
    for name, letters in shapes(spec, inputs).items():
        axes = letters.split()
        shape = _array_shape(inputs[name], name) if name in inputs and name != "x" else None
        if shape is not None and len(shape) == len(axes):
            n = {**dict(zip(axes, shape, strict=True)), **n}
        elif complete and name in needed:
            wanted = letters.replace(" ", ", ").replace("Hd", "rows").replace("Kd", "rows")
            raise ValueError(
                f"the inputs lack {name} ({wanted})"
                if shape is None
                else f"{name}: got shape {shape}, expected ({wanted})"
            )
    if layer and complete:
        given = getattr(spec, "head_dim", None)
        d = n["d"] = given if isinstance(given, int) and given > 0 else n.get("d", 0)
        if not d:
            raise ValueError("the arrays of this layer do not say how wide a head is: give head_dim")
        for name, rows, heads in (("q", "Hd", "H"), ("k", "Kd", "K")):
            if n[rows] % d:
                raise ValueError(
                    f"{name}_proj.weight has {n[rows]} rows, which is not a multiple of the head width {d}"
                )
            n[heads] = n[rows] // d
    return n


def _array_shape(x: Any, name: str) -> tuple[int, ...]:
    return tuple(x.shape if hasattr(x, "shape") else any_array(x, name).shape)
