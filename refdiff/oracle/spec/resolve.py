"""The spec that a caller means: its own, or a preset by name, whose dimensions are those of the inputs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from refdiff.oracle.spec import Spec
from refdiff.oracle.spec.dimensions import dimensions
from refdiff.oracle.spec.presets import over_preset


def resolve_spec(spec: Any, inputs: Any = None) -> Spec:
    """Return `spec`; of a preset's name that preset, with the dimensions of the inputs, or of `small_spec` without.

    All other fields are the preset's: layer 0, which no array shows, and its window.

    Raises:
        TypeError: `spec` is neither, or `inputs` no mapping.
        ValueError: no preset has that name, or the inputs do not show dimensions that it can have.
    """
    if not isinstance(spec, Spec | str):
        raise TypeError(
            f"spec is of type {type(spec).__name__}, but must be a Spec or a preset's name; the outputs come before it"
        )
    if inputs is not None and not isinstance(inputs, Mapping):
        of_case = ": pass case.inputs, and dout=case.dout for gradients" if hasattr(inputs, "inputs") else ""
        raise TypeError(
            f"inputs are of type {type(inputs).__name__}, but must be a mapping from names to arrays{of_case}"
        )
    if isinstance(spec, Spec):
        return spec
    if inputs is None:
        return small_spec(spec)
    fields, read = over_preset({"preset": spec}), {}
    try:
        read = dimensions(fields, inputs)
        return Spec.preset(spec, **read)
    except ValueError as error:
        fix = f"give Spec.preset({spec!r}, query_heads=H, key_heads=K, head_dim=d)"
        raise ValueError(f"spec is {spec!r}: {error}{_read_off(read)}; {fix}") from error


def described(name: str, spec: Spec) -> str:
    """Say which spec a preset's name stands for, where its dimensions were read off the inputs."""
    of = {name: getattr(spec, name) for name in ("query_heads", "key_heads", "head_dim", "v_head_dim", "layer")}
    fields = ", ".join(f"{field}={value}" for field, value in of.items() if value is not None)
    return f"spec {name!r} is Spec.preset({name!r}, {fields}), by the shapes of the inputs"


def _read_off(read: Mapping[str, int]) -> str:
    if not read:
        return ""
    return f" ({', '.join(f'{name}={n}' for name, n in read.items())} by the inputs' shapes, heads before tokens)"


def small_spec(preset: str) -> Spec:
    """A preset with dimensions in which every choice is seen: grouped queries, depth, heads of 16."""
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
