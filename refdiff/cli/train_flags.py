"""The flags of `refdiff train`."""

from __future__ import annotations

import argparse
from typing import Any

from refdiff.cli.flags import Number

SIZES = {
    "vocab_size": ("--vocab-size", Number(int, 257), "tokens of the vocabulary, bytes included", 2048),
    "hidden_size": ("--hidden-size", Number(int, 1), "width of the hidden states", 192),
    "num_hidden_layers": ("--layers", Number(int, 1), "layers", 6),
    "num_attention_heads": ("--heads", Number(int, 1), "query heads; in v2 half of them", 6),
    "num_key_value_heads": ("--kv-heads", Number(int, 1), "key and value heads", "as many as query heads"),
    "head_dim": ("--head-dim", Number(int, 1), "width of a head", "hidden size / heads"),
    "intermediate_size": ("--inner-size", Number(int, 1), "inner width of the feed-forward networks", "8/3 of hidden"),
}
"""Fields of the config: flag, limits, help, default."""

SETTINGS: dict[str, tuple[str, Number, str, int | float]] = {
    "steps": ("--steps", Number(int, 1), "steps to make", 1000),
    "batch": ("--batch", Number(int, 1), "rows of a step", 16),
    "context": ("--context", Number(int, 2), "tokens of a row", 256),
    "accumulate": ("--accumulate", Number(int, 1, off="1 = off"), "compute a step's rows in N parts", 1),
    "rate": ("--rate", Number(float, 0, above=True), "the highest learning rate", 1e-3),
    "warmup": ("--warmup", Number(int, 0, off="0 = off"), "steps until that", 50),
    "decay": ("--decay", Number(float, 0, off="0 = off"), "weight decay of the matrices", 0.1),
    "clip": ("--clip", Number(float, 0, above=True, off="1e9 = off"), "the longest gradient", 1.0),
    "seed": ("--seed", Number(int, 0), "decides weights, order and samples", 0),
    "evaluate_every": ("--evaluate-every", Number(int, 0, off="0 = only at the end"), "validate every N steps", 200),
    "save_every": ("--save-every", Number(int, 0, off="0 = only at the end"), "write a checkpoint every N steps", 200),
    "sample_every": ("--sample-every", Number(int, 0, off="0 = only at the end"), "show a sample every N steps", 200),
}
"""Fields of `refdiff.training.settings.Settings`: flag, limits, help, default."""

EXAMPLES = """
examples:
  refdiff train tales.txt -o run --steps 2000
  refdiff train -o run --resume
"""


class _Noted(argparse.Action):
    """Store a value, and in `given` the flag that it came by: a default is none."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option: str | None = None
    ) -> None:
        setattr(namespace, self.dest, values)
        namespace.given = {**namespace.given, self.dest: option}


def add_train(commands: Any) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "train",
        examples=EXAMPLES,
        help="a small model from a text file",
        description="Train a DiffLlama, or a plain Llama to compare it with, on a UTF-8 text. Checkpoints are ordinary "
        "model folders, OUTPUT/step-…, and OUTPUT/log.jsonl has a line a step. Killed at any moment and resumed, "
        "it ends with the weights of a run that was not. The last checkpoint's path goes to standard output.",
    )
    parser.add_argument(
        "text",
        nargs="?",
        metavar="TEXT",
        help="a UTF-8 file, which may be larger than memory; a line <|endoftext|> separates documents; the tokenizer "
        "learns from at most 16 MB, spread evenly over the text (default: none, one is needed)",
    )
    parser.add_argument("-o", "--output", metavar="OUTPUT", required=True, help="the folder of the run")
    parser.add_argument(
        "--resume",
        action="store_true",
        help="go on from OUTPUT's last checkpoint with its settings; --steps, --rate, --warmup, --clip, --prompt and "
        "--…-every may be others (default: off)",
    )
    parser.set_defaults(given={})
    parser.add_argument(
        "--validation",
        action=_Noted,
        type=Number(float, 0, 0.5, above=True),
        default=0.02,
        metavar="SHARE",
        help="the share of the text, at its end, that training never sees (default: 0.02)",
    )

    parser.add_argument(
        "--plot",
        metavar="FILE",
        help="draw loss and lambda by layer over the steps into a .png or .svg, anew at each validation (needs "
        "matplotlib; default: none)",
    )

    model = parser.add_argument_group("model")
    model.add_argument(
        "--config",
        action=_Noted,
        metavar="FILE",
        help="a config.json; flags win over what it says (default: none, the flags below)",
    )
    model.add_argument(
        "--wiring",
        action=_Noted,
        choices=("hf", "paper", "v2", "none"),
        help="hf = transformers' DiffLlama, paper = unilm's, v2 = DIFF V2, none = a Llama (default: hf)",
    )
    for field, (flag, limits, text, default) in SIZES.items():
        model.add_argument(
            flag, action=_Noted, dest=field, type=limits, metavar="N", help=f"{text} (default: {default})"
        )

    course = parser.add_argument_group("course")
    course.add_argument(
        "--optimizer",
        action=_Noted,
        choices=("adamw", "muon"),
        default="adamw",
        help="muon = for the layers' matrices (default: adamw)",
    )
    course.add_argument(
        "--schedule",
        action=_Noted,
        choices=("cosine", "constant"),
        default="cosine",
        help="of the learning rate (default: cosine)",
    )
    for field, (flag, limits, text, standard) in SETTINGS.items():
        off = f"; {limits.off}" if limits.off else ""
        course.add_argument(
            flag,
            action=_Noted,
            dest=field,
            type=limits,
            default=standard,
            metavar="N",
            help=f"{text} (default: {standard:g}{off})",
        )
    course.add_argument(
        "--prompt", action=_Noted, default="", metavar="TEXT", help="what samples begin with (default: nothing)"
    )

    machine = parser.add_argument_group("machine")
    machine.add_argument(
        "--backend", choices=("numpy", "cupy"), default="numpy", help="numpy = CPU, cupy = CUDA (default: numpy)"
    )
    machine.add_argument(
        "--dtype",
        action=_Noted,
        choices=("float32", "float64"),
        default="float32",
        help="the weights' type (default: float32)",
    )
    machine.add_argument(
        "--threads",
        action=_Noted,
        type=Number(int, 0, off="0 = all cores"),
        default=0,
        metavar="N",
        help="processor threads; another number rounds otherwise "
        "(default: 0 = all cores, or what OMP_NUM_THREADS says; of a resumed run: its own)",
    )
    machine.add_argument("-q", "--quiet", action="store_true", help="no progress and no samples (default: off)")
    machine.add_argument("--debug", action="store_true", help="show a traceback when something fails (default: off)")
