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
from refdiff.generation.options import Options, resolve
from refdiff.generation.tokenizer.encoded import pad_prompts
from refdiff.layers.rope_frequencies import LENGTH_DEPENDENT

Result = dict[str, Any] | str
"""The fields of an answer, or the reason why there is none."""

_FAILURES = (ValueError, FloatingPointError)
_COUNT_PADDING = ("no_repeat_ngram_size", "bad_words_ids", "sequence_bias")
"""Options that read all ids of a sequence, as in transformers, also its padding."""


@dataclass(frozen=True)
class Task:
    """A prompt, the seed of its text, and letters that stand for the model and all other options."""

    prompt: Prompt
    seed: int
    run: str


def batched(tasks: Iterable[Task], size: int) -> Iterator[list[Task]]:
    """Yield batches of up to `size` tasks, in their order; those of a batch have the same options of generation."""
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
    options: Options


class Answering:
    """A model that answers prompts: a batch of tasks → their results."""

    def __init__(self, args: argparse.Namespace) -> None:
        self._args = args
        self._model, self._tokenizer = load(args)
        answering.check_template(self._tokenizer, args)
        self._common = answering.given_options(args)
        answering.check_length(self._model, self._common)

    def __call__(self, tasks: Sequence[Task]) -> list[Result]:
        """Answer tasks of the same options."""
        results: list[Result] = [""] * len(tasks)
        groups: dict[Any, list[tuple[int, _EncodedPrompt]]] = {}
        for i, task in enumerate(tasks):
            try:
                prompt = self._encode(task)
            except _FAILURES as error:
                results[i] = self._failed(error)
            else:
                groups.setdefault(self._batch_key(i, prompt), []).append((i, prompt))
        for group in groups.values():
            for (i, _), result in zip(group, self._answer([prompt for _, prompt in group]), strict=True):
                results[i] = result
        for i, task in enumerate(tasks):
            if isinstance(result := results[i], str) and task.prompt.problem is None:
                results[i] = f"{task.prompt.where}: {result}"
        return results

    def _failed(self, error: Exception) -> str:
        if self._args.debug:
            raise error
        return one_line(error)

    def _encode(self, task: Task) -> _EncodedPrompt:
        if task.prompt.problem is not None:
            raise ValueError(task.prompt.problem)
        answering.check_length(self._model, task.prompt.options, "max_new_tokens")
        given, messages = {**self._common, **task.prompt.options}, task.prompt.messages
        if messages is None and self._args.chat:
            messages = answering.chat_messages(task.prompt.text, given.get("system", self._args.system))
        text, ids = answering.encode(self._model, self._tokenizer, task.prompt.text, messages)
        limit = answering.length_limit(self._model, given, len(ids))
        options = resolve(self._model, answering.call_options(self._tokenizer, given))
        return _EncodedPrompt(text, ids, task.seed, limit, given, options)

    def _batch_key(self, i: int, prompt: _EncodedPrompt) -> Any:
        """Return a key: prompts with equal keys have the same texts in one batch as alone, up to rounding error."""
        options = prompt.options
        rope = self._model.config.rope_parameters.get("rope_type")
        if rope in LENGTH_DEPENDENT or options.prompt_lookup_num_tokens is not None or not prompt.ids:
            return i
        padded = any(getattr(options, name) for name in _COUNT_PADDING)
        return ("together", prompt.limit if options.num_beams > 1 else None, len(prompt.ids) if padded else None)

    def _answer(self, prompts: list[_EncodedPrompt]) -> list[Result]:
        """Answer a batch; if it fails, answer each prompt alone, so that only the wrong ones fail."""
        try:
            return list(self._generate(prompts))
        except _FAILURES as error:
            if len(prompts) == 1:
                return [self._failed(error)]
        return [result for prompt in prompts for result in self._answer([prompt])]

    def _generate(self, prompts: list[_EncodedPrompt]) -> Iterator[dict[str, Any]]:
        limit = min(prompt.limit for prompt in prompts)
        padded = pad_prompts([prompt.ids for prompt in prompts])
        longest = padded["input_ids"].shape[1]
        out = self._model.generate(
            padded["input_ids"],
            attention_mask=padded["attention_mask"],
            seed=[prompt.seed for prompt in prompts],
            max_new_tokens=limit,
            num_return_sequences=1,
            return_dict_in_generate=True,
            output_scores=False,
            output_logits=False,
            pad_token_id=0,  # any one will do: it is masked before a text, and cut off after it
            **answering.call_options(self._tokenizer, prompts[0].given),
        )
        texts = [sequence[longest:end] for sequence, end in zip(out.sequences, out.lengths, strict=True)]
        del out  # the cache
        for prompt, new in zip(prompts, texts, strict=True):
            transcript = Transcript(self._tokenizer, prompt.given["stop"], None)
            transcript.put(np.array([prompt.ids]))
            transcript.put(new[None])
            transcript.close(answering.finish_reason(self._model, transcript, len(new) >= limit, prompt.given))
            if transcript.finish_reason == "length" and limit < prompt.limit:  # another prompt has a lower limit
                yield from self._generate([prompt])
            else:
                yield answering.result_fields(transcript, prompt.seed, echo=prompt.text if self._args.echo else "")
