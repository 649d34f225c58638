"""Spec and recipe on the command line: a name that the oracle knows or a JSON file, fields over it, and dimensions."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from refdiff.cli.flags import Number, UsageError
from refdiff.errors import CheckpointError
from refdiff.files import MAX_JSON, finite_float, read_text, unique_keys
from refdiff.messages import did_you_mean, json_problem

if TYPE_CHECKING:
    from refdiff.oracle.rounding.recipe import Recipe
    from refdiff.oracle.spec import Spec

PRESETS = (
    "hf_diffllama", "ms_v1", "ms_v1_naive", "timm", "phi4flash", "motif", "diff_v2", "gda", "motif3", "attention",
)  # fmt: skip
PROFILES = (
    "discriminating", "tiny_values", "cancellation", "extreme", "natural", "degenerate", "layout", "serving", "tiles",
    "lambda", "modules",
)  # fmt: skip
OUTPUTS = ("out", "lse", "lse1", "lse2")
OF_HEADS = re.compile(r"(query_heads|key_heads|head_dim)(?: is|: got) \d|\d+ query heads")
"""How what a Spec says of its dimensions begins."""


def add_spec(group: Any, default: str | None, *, layer: str = "0", words: str = "") -> None:
    """Add the options that describe a spec; `layer` and `words` are the defaults of --layer and --spec in words."""
    text = "preset or JSON" + (f" (default: {words})" if words else "")
    group.add_argument("--spec", metavar="NAME_OR_FILE", default=default, help=text)
    text = f"depth, for λ_init (default: {layer})"
    group.add_argument("--layer", type=Number(int, 0), metavar="N", help=text)
    group.add_argument("--set", metavar="FIELD=VALUE", action="append", default=[], help="change a field of the spec")


def add_profile(group: Any, default: str) -> None:
    """Add --profile, whose default in words is `default`."""
    text = f"kind of numbers (default: {default})"
    group.add_argument("--profile", action="append", choices=PROFILES, metavar="NAME", help=text)


SPEC_NOTE = (
    f'--spec: {", ".join(PRESETS[:-1])} or {PRESETS[-1]}; or a JSON file with the fields of a Spec, or with "preset" '
    "and the fields that differ. --set window=128, --set scale=0.125 and --set causal=none may be given several times."
)
SMALL_NOTE = (
    f"{SPEC_NOTE} Dimensions of a preset that --set does not give are small. The layer is 2 with a preset's name; with "
    "a JSON file it is the file's field layer, or 0."
)
PROFILE_NOTE = f"--profile is {', '.join(PROFILES[:-1])} or {PROFILES[-1]}, and may be given several times"
RECIPE_NOTE = (
    "--recipe is what the kernel rounds to: float32, tf32, bfloat16 or float16, or a JSON file with the fields of a "
    "Recipe."
)


def parts(arrays: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any], Any]:
    """Split a file's arrays into what was computed, what it was computed from, and the gradient of the output.

    λ itself is an input where a kernel is given it: `lambda_full` is taken for what it computed beside λ's vectors or
    logits alone.
    """
    computes_lambda = any(name.startswith(("lambda_q", "lambda_k", "lambda_logits", "lambda_proj")) for name in arrays)
    outputs = (*OUTPUTS, "lambda_full") if computes_lambda else OUTPUTS
    gradients = {n: x for n, x in arrays.items() if n.startswith("d") and n != "dout"}
    computed = {n: arrays[n] for n in outputs if n in arrays} | gradients
    inputs = {n: x for n, x in arrays.items() if n not in computed and n != "dout"}
    return computed, inputs, arrays.get("dout")


def spec_of(
    args: argparse.Namespace,
    inputs: Mapping[str, Any] | None,
    small: Callable[[str], Spec] | None = None,
    *,
    source: str = "",
) -> tuple[Spec, str]:
    """Return the spec that the flags describe, and in words what of it was read off the inputs, if anything was.

    Without inputs a preset has the dimensions of `small`, and where --spec names it the depth too. `source` is the file
    of the inputs, for what is said of them.
    """
    from refdiff.oracle.spec import Spec
    from refdiff.oracle.spec.presets import merge_preset
    from refdiff.oracle.spec.validation import DIMENSIONS

    given = {**_described(args.spec), **({} if args.layer is None else {"layer": args.layer}), **_changes(args.set)}
    said = ""
    try:
        fields = merge_preset(given)
        if small is not None and "preset" in given:
            names = (*DIMENSIONS, "layer") if args.spec in PRESETS else DIMENSIONS
            fields = {**{name: getattr(small(given["preset"]), name) for name in names}, **fields}
        if inputs is not None:
            read = _read_off(fields, inputs, source)
            fields |= read
            said = _describe_read(read, inputs)
        of = {"preset": given["preset"]} if "preset" in given else {}  # which may refuse what the fields alone may have
        return Spec.of({**of, **fields}), said
    except UsageError:
        raise
    except ValueError as error:
        hint = ""
        if inputs is None and "lacks" in str(error):
            hint = f"; --set FIELD=N gives one{', a FILE has them' if small is None else ''}"
        if said and inputs is not None and "q" in inputs and OF_HEADS.match(str(error)):
            hint = "; where they are (B, T, H, d), .transpose(0, 2, 1, 3) puts them right"
        read_off = said if any(name in str(error) for name in (*DIMENSIONS, "heads")) else ""
        raise UsageError(f"{_source(args)}{error}{read_off}{hint}") from error


def preset_fields(args: argparse.Namespace) -> dict[str, Any]:
    """Return the fields that the flags set, without the dimensions that only arrays have."""
    from refdiff.oracle.cases.fixed import small_spec
    from refdiff.oracle.spec.validation import DIMENSIONS

    given = {*_described(args.spec), *_changes(args.set)}
    layer = args.layer if args.layer is not None or "layer" in given else 0  # and not that of the small spec
    fields = spec_of(argparse.Namespace(**{**vars(args), "layer": layer}), None, small_spec)[0].to_dict()
    return {name: value for name, value in fields.items() if name not in DIMENSIONS or name in given}


def _source(args: argparse.Namespace) -> str:
    """The file of a spec, and what was set over it, as the start of a message."""
    if args.spec in PRESETS or args.spec.startswith("{"):
        return ""
    return f"{' '.join([args.spec, *(f'--set {word}' for word in args.set)])}: "


def _read_off(fields: Mapping[str, Any], inputs: Mapping[str, Any], source: str) -> dict[str, int]:
    from refdiff.oracle.inputs.resolve import infer_dimensions

    try:
        return infer_dimensions(fields, inputs)
    except ValueError as error:
        hint = ": --set head_dim=N" if str(error).endswith("give head_dim") else ""
        raise UsageError(f"{f'{source}: ' if source else ''}{error}{hint}") from error


def _describe_read(read: Mapping[str, int], inputs: Mapping[str, Any]) -> str:
    if not read:
        return ""
    where = "the layer's weights" if "x" in inputs else "q, which is taken as (B, H, T, d), and k, as (B, K, S, d)"
    return f" ({', '.join(f'{name} {n}' for name, n in read.items())}: read off {where})"


def recipe_of(name: str, inputs: Mapping[str, Any] | None = None) -> Recipe:
    """Return the recipe that --recipe means; "auto" is that of the type that the inputs have."""
    from refdiff.oracle.rounding.recipe import Recipe

    of = name
    if name == "auto" and inputs is not None:
        first = "q" if "q" in inputs else "x"
        name, of = str(inputs[first].dtype), f"auto, the type of {first}"
        if others := {str(inputs[n].dtype) for n in ("k", "v") if n in inputs} - {name}:
            raise UsageError(
                f"{first} is {name}, but k or v is {', '.join(sorted(others))}: say with --recipe what it rounds"
            )
    file = name.endswith(".json")
    try:
        if name.startswith("{"):
            return Recipe.of(_object(name, "--recipe"))
        return Recipe.of(json_fields(name) if file else name)
    except UsageError:
        raise
    except ValueError as error:
        said = f"{name}: {error}" if file else f"--recipe {of}: {error}; or the name of a JSON file"
        raise UsageError(said) from error


def _described(name: str) -> dict[str, Any]:
    if name.startswith("{"):
        return _object(name, "--spec")
    if name.endswith(".json") or (name not in PRESETS and Path(name).is_file()):
        return json_fields(name)
    if name not in PRESETS:
        from refdiff.oracle.spec.presets import VARIANT_PRESETS

        hint = did_you_mean(name, PRESETS, show=str)
        if name in VARIANT_PRESETS:
            hint = f"; the preset of that variant is {VARIANT_PRESETS[name]}"
        raise UsageError(f"--spec: got {name!r}, expected {', '.join(PRESETS)}, or a JSON file{hint}")
    return {"preset": name}


def json_fields(path: str) -> dict[str, Any]:
    """Return the object that a JSON file holds."""
    try:
        return _object(read_text(path, max_bytes=MAX_JSON), path)
    except CheckpointError as error:
        raise UsageError(str(error)) from error


def _object(text: str, name: str) -> dict[str, Any]:
    """Return the object that JSON holds; `name` says in an error whose it is."""
    try:
        fields = json.loads(text, parse_float=finite_float, object_pairs_hook=unique_keys)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{name} is not JSON: {json_problem(error)}") from error
    if not isinstance(fields, dict):
        raise UsageError(f"{name} holds no JSON object with fields")
    return fields


def _changes(words: list[str]) -> dict[str, Any]:
    """The fields of --set."""
    from refdiff.oracle.spec.validation import parse_fields

    try:
        return parse_fields(words)
    except ValueError as error:
        raise UsageError(f"--set {error}") from error
