"""Prompts of a file → their texts, several in one pass through the model, each the same as alone."""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from refdiff.cli import answering
from refdiff.cli.loading import load
from refdiff.cli.prompts_file.reading import Prompt
from refdiff.cli.terminal import one_line
from refdiff.cli.transcript import Transcript
from refdiff.generation.tokenizer.encoded import pad_prompts
from refdiff.layers.rope_frequencies import LENGTH_DEPENDENT

Result = dict[str, Any] | str
"""What a line says of its prompt, or in words why there is none."""

_FAILURES = (ValueError, FloatingPointError)
_COUNT_PADDING = ("no_repeat_ngram_size", "bad_words_ids", "sequence_bias")
"""Options that look at all ids of a row, as transformers does, its padding too."""


@dataclass(frozen=True)
class Task:
    """A prompt, the seed of its text, and letters that stand for the model and all other options."""

    prompt: Prompt
    seed: int
    run: str


def batched(tasks: Iterable[Task], size: int) -> Iterator[list[Task]]:
    """Up to `size` tasks at a time, in their order; those of a batch have the same options of generation."""
    for _, alike in itertools.groupby(tasks, _choices):
        while batch := list(itertools.islice(alike, size)):
            yield batch


def _choices(task: Task) -> dict[str, Any]:
    return {name: value for name, value in task.prompt.options.items() if name not in ("seed", "system")}


@dataclass(frozen=True)
class _EncodedPrompt:
    text: str
    ids: list[int]
    seed: int
    limit: int
    given: dict[str, Any]


class Answering:
    """A model that answers prompts: a batch of tasks → their results."""

    def __init__(self, args: argparse.Namespace) -> None:
        self._args = args
        self._model, self._tokenizer = load(args)
        answering.check_template(self._tokenizer, args)
        self._common = answering.given_options(args)

    def __call__(self, tasks: Sequence[Task]) -> list[Result]:
        """Answer tasks of the same options."""
        results: list[Result] = [""] * len(tasks)
        groups: dict[Any, list[tuple[int, _EncodedPrompt]]] = {}
        for i, task in enumerate(tasks):
            try:
                row = self._row(task)
            except _FAILURES as error:
                results[i] = self._failed(error)
            else:
                groups.setdefault(self._kind(i, row), []).append((i, row))
        for group in groups.values():
            for (i, _), result in zip(group, self._answer([row for _, row in group]), strict=True):
                results[i] = result
        for i, task in enumerate(tasks):
            if isinstance(result := results[i], str) and task.prompt.problem is None:
                results[i] = f"{task.prompt.where}: {result}"
        return results

    def _failed(self, error: Exception) -> str:
        if self._args.debug:
            raise error
        return one_line(error)

    def _row(self, task: Task) -> _EncodedPrompt:
        if task.prompt.problem is not None:
            raise ValueError(task.prompt.problem)
        given, messages = {**self._common, **task.prompt.options}, task.prompt.messages
        if messages is None and self._args.chat:
            messages = answering.chat_messages(task.prompt.text, given.get("system", self._args.system))
        text, ids = answering.encode(self._tokenizer, task.prompt.text, messages)
        return _EncodedPrompt(text, ids, task.seed, answering.length_limit(self._model, given, len(ids)), given)

    def _kind(self, i: int, row: _EncodedPrompt) -> Any:
        """Rows of one kind are the same in one batch as each alone, but for rounding."""
        in_file = self._model.generation_config
        rope = self._model.config.rope_parameters.get("rope_type")
        if rope in LENGTH_DEPENDENT or in_file.get("prompt_lookup_num_tokens") is not None or not row.ids:
            return i
        beams = row.given.get("num_beams", in_file.get("num_beams")) or 1
        padded = any(row.given.get(name, in_file.get(name)) for name in _COUNT_PADDING)
        return ("together", row.limit if beams > 1 else None, len(row.ids) if padded else None)

    def _answer(self, rows: list[_EncodedPrompt]) -> list[Result]:
        """Answer rows of one kind; where a batch fails, each alone, so that only what is at fault does."""
        try:
            return list(self._generate(rows))
        except _FAILURES as error:
            if len(rows) == 1:
                return [self._failed(error)]
        return [result for row in rows for result in self._answer([row])]

    def _generate(self, rows: list[_EncodedPrompt]) -> Iterator[dict[str, Any]]:
        limit = min(row.limit for row in rows)
        prompts = pad_prompts([row.ids for row in rows])
        longest = prompts["input_ids"].shape[1]
        out = self._model.generate(
            prompts["input_ids"],
            attention_mask=prompts["attention_mask"],
            seed=[row.seed for row in rows],
            max_new_tokens=limit,
            num_return_sequences=1,
            return_dict_in_generate=True,
            output_scores=False,
            output_logits=False,
            pad_token_id=0,  # any one will do: it is masked before a text, and cut off after it
            **answering.call_options(self._tokenizer, rows[0].given),
        )
        texts = [sequence[longest:end] for sequence, end in zip(out.sequences, out.lengths, strict=True)]
        del out  # the cache
        for row, new in zip(rows, texts, strict=True):
            transcript = Transcript(self._tokenizer, row.given["stop"], None)
            transcript.put(np.array([row.ids]))
            transcript.put(new[None])
            transcript.close(answering.finish_reason(self._model, transcript, len(new) >= limit, row.given))
            if transcript.finish_reason == "length" and limit < row.limit:  # others had less room
                yield from self._generate([row])
            else:
                yield answering.result_fields(transcript, row.seed, echo=row.text if self._args.echo else "")
