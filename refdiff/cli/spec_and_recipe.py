"""What --spec and --recipe stand for: a name that the oracle knows, or a JSON file with the fields."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from refdiff.cli.flags import UsageError

if TYPE_CHECKING:
    from refdiff.oracle.recipe import Recipe
    from refdiff.oracle.spec import Spec

T = TypeVar("T")


def spec_of(name: str, of_preset: Callable[[str], Spec]) -> Spec:
    """The spec that --spec means; `of_preset` gives a preset its dimensions.

    Raises:
        UsageError: no preset has that name, or the file is none of a spec.
    """
    from refdiff.oracle.presets import PRESETS
    from refdiff.oracle.spec import Spec

    if name.endswith(".json"):
        return _from_file(Spec, name)
    if name not in PRESETS:
        raise UsageError(f"--spec {name}: there are {', '.join(PRESETS)}, or the name of a JSON file")
    return of_preset(name)


def recipe_of(name: str) -> Recipe:
    """The recipe that --recipe means.

    Raises:
        UsageError: it is no type's name, or the file is none of a recipe.
    """
    from refdiff.oracle.recipe import Recipe

    if name.endswith(".json"):
        return _from_file(Recipe, name)
    try:
        return Recipe.of(name)
    except ValueError as error:
        raise UsageError(f"--recipe {name}: {error}; or give tf32, or the name of a JSON file") from error


def _from_file(kind: Callable[..., T], path: str) -> T:
    found = _object(path)
    known = [field.name for field in dataclasses.fields(kind)]  # type: ignore[arg-type]
    if unknown := [name for name in found if name not in known]:
        raise UsageError(f"{path}: there is no field {', '.join(unknown)}; there are {', '.join(known)}")
    try:
        return kind(**found)
    except (TypeError, ValueError) as error:
        raise UsageError(f"{path}: {error}") from error


def _object(path: str) -> dict[str, Any]:
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from error
    except ValueError as error:
        raise UsageError(f"{path} is no JSON: {error}") from error
    if not isinstance(found, dict):
        raise UsageError(f"{path} holds no JSON object with fields")
    return found
