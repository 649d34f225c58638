"""A spec or a recipe in one line of text: a name and the fields that differ, or a JSON object."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from refdiff.files import finite_float, unique_keys
from refdiff.messages import json_problem
from refdiff.oracle.inputs.resolve import small_spec
from refdiff.oracle.rounding.recipe import Recipe
from refdiff.oracle.spec import Spec
from refdiff.oracle.spec.validation import CHOICES


def spec_of(text: str) -> Spec:
    """Return a preset with small dimensions and the fields that the text changes, or a spec from a JSON object.

    `hf_diffllama`, `hf_diffllama,query_heads=8,window=64` or `{"preset": "ms_v1", "query_heads": 8, …}`.

    Raises:
        ValueError: no preset has that name, or a field is unknown or cannot have its value.
    """
    text = text.strip()
    if text.startswith("{"):
        return Spec.of(json.loads(text))
    name, *changes = text.split(",")
    return Spec.of({**small_spec(name.strip()).to_dict(), **parse_fields(changes)})


def recipe_of(text: str) -> Recipe:
    """Return the usual recipe of a type with the fields that the text changes, or a recipe from a JSON object.

    `bfloat16`, `bfloat16,lam=float32` or `{"storage": "bfloat16", "lam": "float32"}`.

    Raises:
        ValueError: as `Recipe.of`.
    """
    text = text.strip()
    if text.startswith("{"):
        return Recipe.of(json.loads(text))
    name, *changes = text.split(",")
    return Recipe.of({"storage": name.strip(), **parse_fields(changes)} if changes else name)


def parse_fields(words: Sequence[str]) -> dict[str, Any]:
    """Parse words FIELD=VALUE: the value is none, true, false, JSON, or else text.

    Raises:
        ValueError: a word has another form; the message begins with the word or its field.
    """
    fields: dict[str, Any] = {}
    for word in words:
        field, equals, text = word.strip().partition("=")
        if not equals or not field:
            raise ValueError(f"{word}: must be FIELD=VALUE, such as window=128")
        is_text = field in CHOICES or field == "preset"
        try:
            fields[field] = text if is_text else _value(text)
        except ValueError as error:
            raise ValueError(f"{field}: {json_problem(error)}") from error
    return fields


def _value(text: str) -> Any:
    words = {"none": None, "true": True, "false": False}
    if text.lower() in words:
        return words[text.lower()]
    try:
        return json.loads(text, parse_float=finite_float, object_pairs_hook=unique_keys)
    except (json.JSONDecodeError, RecursionError):
        return text
