"""Which names of transformers refdiff has: read from the installed transformers and from what refdiff answers.

`python -m tests.parity.compatibility` writes the tables of the guide notebooks/reference/guides/transformers.md.
"""

from __future__ import annotations

import inspect
import re
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import transformers

import refdiff
from refdiff.generation import options

GUIDE = Path(__file__).parents[2] / "notebooks/reference/guides/transformers.md"
CLASSES = ("Model", "ForCausalLM", "ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering")
SIZES = {"vocab_size": 8, "hidden_size": 32, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 4}
TITLES = {
    "config": "`DiffLlamaConfig`",
    "models": "The five model classes",
    "generate": "`generate`: arguments and fields of `GenerationConfig`",
    "tokenizer": "`PreTrainedTokenizerFast`, here `Tokenizer`",
    "pipeline": "`pipeline`: arguments",
    "others": "Other classes",
}
STATUSES = {
    "same": "Same name and meaning",
    "renamed": "Same, by another name",
    "refused": "Refused by name",
    "absent": "Not there; the error does not say what serves instead",
}


@dataclass(frozen=True)
class Row:
    """A name of transformers: its status here, a key of `STATUSES`, and the sentence that refdiff gives."""

    name: str
    status: str
    note: str = ""


def public(one: object) -> set[str]:
    return {name for name in dir(one) if not name.startswith("_")}


def answered(owner: Any, name: str, error: Exception) -> Row:
    """The row of a name for which refdiff raises an error, whose message names it and says what serves instead."""
    text = str(error)
    _, _, instead = text.partition("; ")
    renamed = re.match(r"use `(\w+)`", instead)
    is_true = renamed is None or owner is None or hasattr(owner, renamed[1])
    if name not in text or not instead or instead.startswith("did you mean") or not is_true:
        return Row(name, "absent")
    return Row(name, "renamed" if renamed else "refused", instead)


def attribute(owner: Any, name: str, theirs: Any) -> Row:
    """The row of an attribute or method. A method that takes fewer arguments is noted."""
    try:
        ours = getattr(owner, name)
    except AttributeError as error:
        return answered(owner, name, error)
    return Row(name, "same", lacking(getattr(theirs, name, None), ours))


def lacking(theirs: Any, ours: Any) -> str:
    """Which parameters of transformers' method refdiff's method does not take by name."""
    if not callable(theirs) or not callable(ours) or isinstance(theirs, type):
        return ""
    try:
        wanted, given = inspect.signature(theirs).parameters, inspect.signature(ours).parameters
    except (TypeError, ValueError):
        return ""
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in given.values()):
        return ""
    by_name = [n for n, p in wanted.items() if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL) and n not in given]
    return f"without {', '.join(f'`{name}`' for name in by_name)}" if by_name else ""


def argument(name: str, known: Iterable[str], call: Callable[[Any], Any]) -> Row:
    """The row of an argument: known by name, as an error about its value shows too, or refused.

    `call` gets a value that no argument can mean.
    """
    if name in known:
        return Row(name, "same")
    try:
        call(object())
    except (TypeError, ValueError) as error:
        about_value = re.match(rf"(\w+, )*{name}(, \w+)*: got (?!a name)", str(error))
        return Row(name, "same") if about_value else answered(None, name, error)
    return Row(name, "same")


def config_rows() -> list[Row]:
    theirs, ours = transformers.DiffLlamaConfig(**SIZES), refdiff.DiffLlamaConfig(**SIZES)
    rows = [attribute(ours, name, theirs) for name in sorted(public(theirs))]
    lost = ", ".join(f"`{name}`" for name in sorted(theirs.to_dict().keys() - ours.to_dict().keys()))
    said = f"without {lost}, which say nothing of a DiffLlama at their only value or default"
    return [replace(row, note=said) if row.name == "to_dict" else row for row in rows]


def model_rows() -> list[Row]:
    """A name is the same if every class that has it in transformers has it here."""
    rows: dict[str, Row] = {}
    for kind in CLASSES:
        theirs = getattr(transformers, f"DiffLlama{kind}")(transformers.DiffLlamaConfig(**SIZES))
        ours = getattr(refdiff, f"DiffLlama{kind}")(refdiff.DiffLlamaConfig(**SIZES))
        for name in public(theirs):
            row = attribute(ours, name, theirs)
            if name not in rows or rows[name].status == "same":
                rows[name] = row
    return [rows[name] for name in sorted(rows)]


def generate_rows() -> list[Row]:
    config = transformers.GenerationConfig()
    names = set(vars(config)) | set(inspect.signature(transformers.GenerationMixin.generate).parameters)
    names -= {"self", "kwargs", "transformers_version"}
    model = refdiff.DiffLlamaForCausalLM.from_pretrained("bundled")
    known = inspect.signature(model.generate).parameters
    ours = {*known, *options.NAMES} - {"generation_options", "kwargs"}
    rows = [
        argument(name, ours, lambda value, name=name: model.generate([[1]], max_new_tokens=1, **{name: value}))
        for name in sorted(name for name in names if not name.startswith("_"))
    ]
    ignored = "any value is accepted, since it changes how fast, not what"
    return [replace(row, note=ignored) if row.name in options.SPEED else row for row in rows]


def tokenizer_rows() -> list[Row]:
    ours = refdiff.Tokenizer.from_pretrained("bundled")
    theirs = transformers.PreTrainedTokenizerFast.from_pretrained(Path(refdiff.__file__).parent / "bundled")
    return [attribute(ours, name, theirs) for name in sorted(public(theirs))]


def pipeline_rows() -> list[Row]:
    names = set(inspect.signature(transformers.pipeline).parameters)
    names |= set(inspect.signature(transformers.Pipeline.__init__).parameters)
    known = inspect.signature(refdiff.pipeline).parameters
    return [
        argument(name, known, lambda value, name=name: refdiff.pipeline("text-generation", "bundled", **{name: value}))
        for name in sorted(names - {"self", "kwargs", "args"})
    ]


def other_objects() -> dict[str, tuple[Any, Any]]:
    """An object or class of transformers, and refdiff's, by the name in the table."""
    folder = Path(refdiff.__file__).parent / "bundled"
    tokenizers: Any = transformers.AutoTokenizer.from_pretrained(folder), refdiff.AutoTokenizer.from_pretrained(folder)
    encoded: Any = [tokenize("a", return_tensors=kind) for tokenize, kind in zip(tokenizers, ("pt", "np"), strict=True)]
    kinds = transformers.AutoModelForCausalLM, refdiff.AutoModelForCausalLM
    models: Any = [kind.from_pretrained(folder) for kind in kinds]
    outputs = [model(**inputs) for model, inputs in zip(models, encoded, strict=True)]
    options = {"max_new_tokens": 1, "return_dict_in_generate": True}
    generated = [model.generate(**inputs, **options) for model, inputs in zip(models, encoded, strict=True)]
    arguments = {
        "TextStreamer": tokenizers,
        "TextIteratorStreamer": tokenizers,
        "MaxLengthCriteria": (3, 3),
        "MaxTimeCriteria": (3.0, 3.0),
        "EosTokenCriteria": (3, 3),
        "TopKLogitsWarper": (3, 3),
    }
    auto = ("Config", "Tokenizer", "Model", *(f"Model{kind}" for kind in CLASSES[1:]))
    return {
        **{f"Auto{kind}": (getattr(transformers, f"Auto{kind}"), getattr(refdiff, f"Auto{kind}")) for kind in auto},
        "GenerationConfig": tuple(model.generation_config for model in models),
        "BatchEncoding": tuple(encoded),
        "ModelOutput": tuple(outputs),
        "GenerateDecoderOnlyOutput": tuple(generated),
        "DynamicCache": tuple(output.cache for output in outputs),
        "Pipeline": (transformers.pipeline("text-generation", folder), refdiff.pipeline("text-generation", folder)),
        **{
            name: tuple(
                getattr(library, name)(one) for library, one in zip((transformers, refdiff), given, strict=True)
            )
            for name, given in arguments.items()
        },
        "StopStringCriteria": tuple(
            library.StopStringCriteria(tokenizer, ["a"])
            for library, tokenizer in zip((transformers, refdiff), tokenizers, strict=True)
        ),
        "WatermarkingConfig": (transformers.WatermarkingConfig(), refdiff.WatermarkingConfig()),
    }


def other_rows() -> list[Row]:
    """Options of generation configs are in their own table."""
    options_of_generate = set(vars(transformers.GenerationConfig()))
    return [
        replace(attribute(ours, name, theirs), name=f"{kind}.{name}")
        for kind, (theirs, ours) in other_objects().items()
        for name in sorted(public(theirs) - (options_of_generate if kind == "GenerationConfig" else set()))
    ]


ROWS: dict[str, Callable[[], list[Row]]] = {
    "config": config_rows,
    "models": model_rows,
    "generate": generate_rows,
    "tokenizer": tokenizer_rows,
    "pipeline": pipeline_rows,
    "others": other_rows,
}


def tables() -> str:
    """The generated half of the guide: a table for each subject, its names gathered by status and sentence."""
    parts = [f"Read from transformers {transformers.__version__}.\n"]
    for subject, rows in ROWS.items():
        parts.append(f"## {TITLES[subject]}\n\n| names | here |\n| --- | --- |")
        gathered: dict[tuple[str, str], list[str]] = {}
        for row in rows():
            gathered.setdefault((row.status, row.note), []).append(f"`{row.name}`")
        order = list(STATUSES)
        for (status, note), names in sorted(gathered.items(), key=lambda item: (order.index(item[0][0]), item[0][1])):
            said = STATUSES[status] if not note else f"{STATUSES[status]}: {note}"
            parts.append(f"| {', '.join(names)} | {said} |")
        parts.append("")
    return "\n".join(parts)


def page() -> str:
    """The guide as it should be: its text up to the first table, and the tables."""
    text = GUIDE.read_text(encoding="utf-8")
    return text[: text.index("Read from transformers ")] + tables()


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    GUIDE.write_text(page(), encoding="utf-8")
