"""The flags of `refdiff generate`: names, ranges, defaults, and what turns each of them off."""

from __future__ import annotations

import argparse
from typing import Any

from refdiff import bundled
from refdiff.cli.flags import Number, add_common, add_dask
from refdiff.cli.loading import add_machine
from refdiff.cli.prompt import add_prompt

# What a prompt in a JSONL file can set for itself too. The keys are the names of refdiff.generate's options.
NUMBERS = {
    "max_new_tokens": Number(int, 0, off="0 = until the end token, or until the context is full"),
    "temperature": Number(float, 0, off="0 = greedy"),
    "top_k": Number(int, 0, off="0 = off"),
    "top_p": Number(float, 0, 1, above=True, off="1 = off"),
    "min_p": Number(float, 0, 1, off="0 = off"),
    "repetition_penalty": Number(float, 0, above=True, off="1 = off"),
    "no_repeat_ngram_size": Number(int, 0, off="0 = off"),
    "num_beams": Number(int, 1, off="1 = off"),
    "seed": Number(int, 0),
}


def add_generate(commands: Any) -> None:
    examples = """
examples:
  refdiff generate -m path/to/checkpoint -n 50 "The capital of France is"
  refdiff generate -m path/to/checkpoint --prompts-file in.jsonl -o out.jsonl
"""
    parser = commands.add_parser(
        "generate",
        examples=examples,
        help="text from a prompt",
        description="Continue a prompt. The text goes to standard output as it comes; everything else goes to "
        "standard error.",
    )
    given = parser.add_argument_group("model and prompt")
    given.add_argument(
        "-m",
        "--model",
        metavar="PATH_OR_REPO",
        default=bundled.NAME,
        help="a folder with config.json, model.safetensors and tokenizer.json, or a hub repo id (default: bundled, a "
        "small model of fairy tales that the package brings)",
    )
    add_prompt(given)
    given.add_argument(
        "--chat", action="store_true", help="put the prompt into the checkpoint's chat template (default: off)"
    )
    given.add_argument("--system", metavar="TEXT", help="the system message, with --chat (default: none)")

    _add_choices(
        parser.add_argument_group(
            "choice of tokens", "Where the checkpoint's generation_config.json sets one of these, that is the default."
        )
    )
    _add_output(parser.add_argument_group("output"))

    many = parser.add_argument_group("many prompts")
    many.add_argument(
        "--prompts-file",
        metavar="FILE",
        help="one prompt a line, or JSONL with the fields prompt (or text), id, system, stop and any of "
        f"{', '.join(NUMBERS)}; writes one JSON object a line (default: none)",
    )
    many.add_argument(
        "-o",
        "--output",
        metavar="FILE",
        help="where those lines go; prompts that FILE already answers are skipped (default: standard output)",
    )
    many.add_argument(
        "--batch-size",
        type=Number(int, 1, off="1 = off"),
        default=1,
        metavar="N",
        help="up to N prompts that follow each other, with the same options, in one pass; the texts stay the same, but "
        "for tokens between which rounding decides (default: 1 = off)",
    )
    many.add_argument(
        "--num-shards",
        type=Number(int, 1, off="1 = off"),
        default=1,
        metavar="N",
        help="split the prompts among N runs (default: 1 = off)",
    )
    many.add_argument(
        "--shard-index",
        type=Number(int, 0),
        default=0,
        metavar="I",
        help="this run takes the prompts I, I + N, I + 2N, ... (default: 0)",
    )
    add_dask(many, "a batch at a time")

    machine = parser.add_argument_group("machine")
    add_machine(machine)
    add_common(machine)


def _add_choices(group: argparse._ArgumentGroup) -> None:
    def number(option: str, *flags: str, default: str, **kwargs: Any) -> None:
        known = NUMBERS[option]
        kwargs["help"] += f" (default: {default}" + (f"; {known.off})" if known.off else ")")
        group.add_argument(*flags, dest=option, type=known, **kwargs)

    number(
        "max_new_tokens", "-n", "--max-new-tokens", "--max-tokens", default="128", metavar="N", help="at most N tokens"
    )
    number(
        "temperature",
        "--temperature",
        "--temp",
        default="0, or 1 with --top-k, --top-p or --min-p",
        metavar="T",
        help="randomness",
    )
    number("top_k", "--top-k", default="50 when sampling", metavar="K", help="sample among the K most probable tokens")
    number(
        "top_p",
        "--top-p",
        default="1",
        metavar="P",
        help="sample among the fewest tokens that together have probability P",
    )
    number(
        "min_p",
        "--min-p",
        default="0",
        metavar="P",
        help="leave out tokens less probable than P times the most probable one",
    )
    number(
        "repetition_penalty",
        "--repetition-penalty",
        default="1",
        metavar="X",
        help="divide the positive logits of tokens that have occurred by X, multiply the negative ones",
    )
    number(
        "no_repeat_ngram_size",
        "--no-repeat-ngram-size",
        default="0",
        metavar="N",
        help="no N tokens in a row twice",
    )
    number("num_beams", "--num-beams", default="1", metavar="N", help="beam search with N hypotheses")
    number(
        "seed",
        "-s",
        "--seed",
        default="a new one each time, shown with the statistics; with --prompts-file 0, to which each prompt's index "
        "is added",
        metavar="SEED",
        help="makes sampling repeatable",
    )
    group.add_argument(
        "--stop",
        action="append",
        metavar="TEXT",
        help="end before TEXT; may be given more than once (default: none)",
    )
    group.add_argument(
        "--ignore-eos", action="store_true", help="go on after the end-of-text token (default: off = stop there)"
    )


def _add_output(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--echo", action="store_true", help="print the prompt before the text (default: off)")
    group.add_argument(
        "--no-stream", action="store_true", help="print the text when it is complete (default: off = as it comes)"
    )
    group.add_argument("-q", "--quiet", action="store_true", help="no statistics and no progress (default: off)")
    group.add_argument(
        "--json", action="store_true", help="print one JSON object with text and statistics (default: off)"
    )
