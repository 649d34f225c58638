"""A spec or a recipe in one line of text: a name and the fields that differ, or a JSON object."""

from __future__ import annotations

import json

from refdiff.oracle.inputs.resolve import resolve_spec
from refdiff.oracle.rounding.recipe import Recipe
from refdiff.oracle.spec import Spec


def spec_of(text: str) -> Spec:
    """Return a preset with small dimensions and the fields that the text changes, or a spec from a JSON object.

    `hf_diffllama`, `hf_diffllama,query_heads=8,window=64` or `{"preset": "ms_v1", "query_heads": 8, …}`.

    Raises:
        ValueError: no preset has that name, or a field is unknown or cannot have its value.
    """
    text = text.strip()
    if text.startswith("{"):
        return Spec.of(json.loads(text))
    return resolve_spec(text)


def recipe_of(text: str) -> Recipe:
    """Return the usual recipe of a type with the fields that the text changes, or a recipe from a JSON object.

    `bfloat16`, `bfloat16,lam=float32` or `{"storage": "bfloat16", "lam": "float32"}`.

    Raises:
        ValueError: as `Recipe.of`.
    """
    text = text.strip()
    if text.startswith("{"):
        return Recipe.of(json.loads(text))
    return Recipe.of(text)
