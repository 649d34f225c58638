"""safetensors ↔ nested dict, with names, shapes and types checked before first use, and without needless copies."""

from refdiff.model.weights.folder import headers
from refdiff.model.weights.initialize import initialize
from refdiff.model.weights.load import load, nonfinite, resolve_dtype
from refdiff.model.weights.names import (
    ARCHITECTURES,
    architecture_of,
    attention_shapes,
    check_parameters,
    count_parameters,
    flatten,
    nest,
    parameter_shapes,
)
from refdiff.model.weights.save import save

__all__ = [
    "ARCHITECTURES",
    "architecture_of",
    "attention_shapes",
    "check_parameters",
    "count_parameters",
    "flatten",
    "headers",
    "initialize",
    "load",
    "nest",
    "nonfinite",
    "parameter_shapes",
    "resolve_dtype",
    "save",
]
