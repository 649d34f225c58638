"""`refdiff inspect`: config, parameters, files, λ by layer and memory of a checkpoint, without loading its weights."""

from __future__ import annotations

import argparse
import collections
import itertools
import json
import math
import re
import sys
import textwrap
from pathlib import Path
from typing import Any

from refdiff.cli.flags import add_common, add_model
from refdiff.cli.loading import fetch, find_checkpoint
from refdiff.cli.parser import Parser
from refdiff.cli.terminal import size, waiting
from refdiff.messages import printable

_WIDTH = 78
_LAYER = re.compile(r"(.*\blayers)\.(\d{1,9})\.(.+)")
_KV_TOKENS = 1000
_PROBLEMS = 20
"""Problems that are shown without --json."""
_LARGEST_VECTOR = 1_000_000
"""Bytes of a λ vector: it has as many numbers as a head."""


def add_arguments(parser: Parser) -> None:
    parser.description = (
        "Show a checkpoint's config, parameters, files, λ by layer and the memory that it needs, without loading its "
        "weights. A hub repo is downloaded. Exit status: 1 where config and weights do "
        "not fit together."
    )
    parser.examples = """
refdiff inspect path/to/checkpoint
refdiff inspect --json kajuma/DiffLlama-0.3B-handcut
"""
    add_model(parser, "model", nargs="?")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    add_common(parser)


def run(args: argparse.Namespace) -> int:
    """Print the report of a checkpoint, or the same as JSON, and return the exit status."""
    name = find_checkpoint(args.model, quiet=True)  # the report names it
    folder = fetch(name, args)
    with waiting("reading headers", quiet=args.quiet):
        report = {"checkpoint": name, **describe(folder)}
    if args.json:  # in ASCII: file names may hold half surrogate pairs
        sys.stdout.write(json.dumps(report, indent=2) + "\n")
    else:
        sys.stdout.write("\n".join(printable(line.replace("\n", "\\n"), 500) for line in _lines(report)) + "\n")
    return 1 if report["problems"] else 0


def describe(folder: Path) -> dict[str, Any]:
    """Return a description of a checkpoint as a dict for JSON; CheckpointError where a file's header is broken."""
    from refdiff.model.config import DiffLlamaConfig
    from refdiff.model.weights import architecture_of, resolve_dtype
    from refdiff.model.weights.folder import open_checkpoint
    from refdiff.model.weights.load import find_parameters
    from refdiff.model.weights.names import backbone_prefix, parameter_shapes, stored_architecture, with_prefix
    from refdiff.model.weights.precision import STORED

    config = DiffLlamaConfig.from_pretrained(folder)
    stored = open_checkpoint(folder)
    architecture = architecture_of(config)
    order = {name: i for i, name in enumerate(parameter_shapes(config, architecture))}
    prefix = backbone_prefix(architecture)
    entries = [(name, t, Path(file.label).name) for file in stored for name, t in file.tensors.items()]
    entries.sort(key=lambda entry: order.get(with_prefix(entry[0], prefix), len(order)))
    tensors: dict[str, dict[str, Any]] = {
        name: {"dtype": STORED.get(t.dtype, t.dtype), "shape": list(t.shape), "bytes": t.nbytes, "file": file}
        for name, t, file in entries
    }
    dtype, counts = resolve_dtype(folder, config), collections.Counter(t["file"] for t in tensors.values())
    return {
        "architecture": stored_architecture(config, architecture),
        "parameters": sum(math.prod(t["shape"]) for t in tensors.values()),
        "dtype": dtype,
        "config": config.to_dict(),
        "files": [
            {"name": path.name, "bytes": path.stat().st_size, "tensors": counts[path.name]}
            for path in sorted(folder.iterdir())
            if path.is_file()
        ],
        "tensors": tensors,
        "lambdas": _lambdas(stored),
        "memory": _memory(config, tensors, dtype),
        "problems": find_parameters(stored, config, architecture)[1],
    }


def _lambdas(stored: list[Any]) -> list[dict[str, Any]]:
    """Return λ_init and λ of every layer whose four vectors are stored. No other weights are read."""
    import numpy as np

    from refdiff.layers.diff_lambda import diff_lambda, lambda_init
    from refdiff.model.weights.precision import STORED, to_compute

    vectors: dict[int, dict[str, Any]] = {}
    for file in stored:
        for name, tensor in file.tensors.items():
            match = re.search(r"\blayers\.(\d{1,9})\.self_attn\.(lambda_[qk][12])$", name)
            if match and tensor.dtype in STORED and len(tensor.shape) == 1 and tensor.nbytes <= _LARGEST_VECTOR:
                values = to_compute(file.view(name), STORED[tensor.dtype], "float64")
                vectors.setdefault(int(match[1]), {})[match[2]] = values
    result = []
    for layer, four in sorted(vectors.items()):
        if len(four) == 4 and len({v.shape for v in four.values()}) == 1:
            start = lambda_init(layer)
            with np.errstate(all="ignore"):
                value = float(
                    diff_lambda(four["lambda_q1"], four["lambda_k1"], four["lambda_q2"], four["lambda_k2"], start)
                )
            result.append({"layer": layer, "lambda_init": start, "lambda": value})
    return result


def _memory(config: Any, tensors: dict[str, Any], dtype: str) -> dict[str, int]:
    """Return the bytes of a run: of the weights in memory, and of the keys and values of the context."""
    wide = 8 if dtype == "float64" else 4
    cache = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * wide
    return {
        "stored": sum(t["bytes"] for t in tensors.values()),
        "weights": sum(math.prod(t["shape"]) * wide for t in tensors.values()),
        "mapped": sum(t["bytes"] for t in tensors.values() if t["dtype"] == dtype in ("float32", "float64")),
        "kv_cache_per_1000_tokens": cache * _KV_TOKENS,
        "kv_cache_at_max_position": cache * config.max_position_embeddings,
    }


def _lines(report: dict[str, Any]) -> list[str]:
    lines = [
        report["checkpoint"],
        f"{report['architecture']}, {report['parameters']:,} parameters, weights as {report['dtype']}",
        "",
        "config",
        *_config_lines(report["config"]),
        "",
        f"{'files':48}{'tensors':>14}{'size':>16}",
    ]
    for file in report["files"]:
        name = printable(file["name"].replace("\n", "\\n"), 46)
        lines.append(f"  {name:<46}{file['tensors'] or '':>14}{size(file['bytes']):>16}")
    lines += ["", *_parameter_lines(report["tensors"])]
    if report["lambdas"]:
        lines += ["", *_lambda_lines(report["lambdas"])]
    memory = report["memory"]
    how = "mapped from the files" if memory["mapped"] == memory["weights"] else "expanded when loaded"
    lines += [
        "",
        "memory",
        f"  weights                          {size(memory['weights']):>10}  {how}",
        f"  keys and values, {_KV_TOKENS} tokens     {size(memory['kv_cache_per_1000_tokens']):>10}",
        f"  keys and values, {report['config']['max_position_embeddings']} tokens".ljust(35)
        + f"{size(memory['kv_cache_at_max_position']):>10}  max_position_embeddings",
    ]
    if report["problems"]:
        shown, more = report["problems"][:_PROBLEMS], len(report["problems"]) - _PROBLEMS
        lines += ["", "problems", *(f"  {problem}" for problem in shown)]
        lines += [f"  and {more} more; --json has all"] if more > 0 else []
    return lines


def _config_lines(config: dict[str, Any]) -> list[str]:
    """Return the lines of the config, in two columns where they fit."""
    short: list[tuple[str, str]] = []
    long: list[tuple[str, str]] = []
    for key, value in config.items():
        if value is None or value == {} or key == "architectures" or (key, value) == ("model_type", "diffllama"):
            continue
        if key in ("id2label", "label2id") and list(config["id2label"].values()) == ["LABEL_0", "LABEL_1"]:
            continue  # what every config has
        text = printable(json.dumps(value, ensure_ascii=False, default=str), 2000)
        (short if len(key) + len(text) <= _WIDTH // 2 - 5 else long).append((key, text))
    half = (len(short) + 1) // 2
    lines = []
    for (key, text), right in itertools.zip_longest(short[:half], short[half:]):
        left = f"  {key} {text}"
        lines.append(f"{left:<{_WIDTH // 2}}  {right[0]} {right[1]}" if right else left)
    for key, text in long:
        lines += textwrap.wrap(f"  {key} {text}", _WIDTH, subsequent_indent="    ", drop_whitespace=False)
    return lines


def _parameter_lines(tensors: dict[str, Any]) -> list[str]:
    """Return the table of parameters, in which equal layers share one entry."""
    lines = [f"{'parameters':36}{'shape':>16}{'dtype':>12}{'size':>14}"]
    top: list[tuple[str, Any]] = []
    layers: dict[tuple[str, int], list[tuple[str, Any]]] = {}
    for name, tensor in tensors.items():
        if match := _LAYER.fullmatch(name):
            layers.setdefault((match[1], int(match[2])), []).append((match[3], tensor))
        else:
            top.append((name, tensor))

    def row(name: str, tensor: dict[str, Any], indent: str) -> str:
        shape = " × ".join(map(str, tensor["shape"])) or "()"
        return f"{indent + printable(name, 500):<36}{shape:>16}{tensor['dtype']:>12}{size(tensor['bytes']):>14}"

    def form(rows: list[tuple[str, Any]]) -> list[tuple[str, Any, Any]]:
        return sorted((name, t["dtype"], t["shape"]) for name, t in rows)

    lines += [row(name, tensor, "  ") for name, tensor in top]
    ordered = sorted(layers.items())
    for _, group in itertools.groupby(ordered, key=lambda item: (item[0][0], form(item[1]))):
        alike = list(group)
        (prefix, first), rows = alike[0]
        last = alike[-1][0][1]
        name = f"{prefix}.{first}" if first == last else f"{prefix}.{first} to {last}, each"
        lines.append(f"  {name}")
        lines += [row(part, tensor, "    ") for part, tensor in rows]
    return lines


def _lambda_lines(lambdas: list[dict[str, Any]]) -> list[str]:
    """Return the lines of λ and λ_init by layer, four layers to a line."""
    cells = [f"{x['layer']:>3} {x['lambda']:.3f} ({x['lambda_init']:.3f})" for x in lambdas]
    rows = ["  ".join(cells[i : i + 4]) for i in range(0, len(cells), 4)]
    return ["λ by layer (λ_init in brackets)", *(f"  {row}" for row in rows)]
