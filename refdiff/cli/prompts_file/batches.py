"""Prompts of a file → their texts, several in one pass through the model, each the same as alone."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from refdiff.cli import answering
from refdiff.cli.loading import load
from refdiff.cli.prompts_file.reading import Prompt
from refdiff.cli.terminal import one_line
from refdiff.cli.transcript import Transcript
from refdiff.generation.options import resolve
from refdiff.generation.tokenizer.encoded import pad_prompts
from refdiff.layers.rope_frequencies import LENGTH_DEPENDENT

Result = dict[str, Any] | str
"""The fields of an answer, or the reason why there is none."""

_FAILURES = (ValueError, FloatingPointError)
_COUNT_PADDING = ("no_repeat_ngram_size", "bad_words_ids", "sequence_bias")
"""Options that read all ids of a sequence, as in transformers, also its padding."""


@dataclass(frozen=True)
class Task:
    """A prompt, the seed of its text, and the digest of the model and all other options."""

    prompt: Prompt
    seed: int
    run: str


@dataclass(frozen=True)
class _EncodedPrompt:
    task: Task
    text: str
    ids: list[int]
    limit: int


class Answering:
    """A model that answers prompts: a batch of tasks → their results."""

    def __init__(self, args: argparse.Namespace) -> None:
        self._args = args
        self._model, self._tokenizer = load(args)
        answering.check_template(self._tokenizer, args)
        self._given = answering.given_options(args)
        answering.check_length(self._model, self._given)
        self._options = answering.call_options(self._tokenizer, self._given)

    def __call__(self, tasks: Sequence[Task]) -> list[Result]:
        """Answer tasks; those that padding would change do not go through the model together."""
        results: dict[int, Result] = {}
        groups: dict[Any, list[_EncodedPrompt]] = {}
        for task in tasks:
            try:
                prompt = self._encode(task)
                groups.setdefault(self._batch_key(prompt), []).append(prompt)
            except _FAILURES as error:
                results[task.prompt.index] = self._failed(task, error)
        for group in groups.values():
            results |= self._answer(group)
        return [results[task.prompt.index] for task in tasks]

    def _failed(self, task: Task, error: Exception) -> str:
        if self._args.debug:
            raise error
        return one_line(error) if task.prompt.problem is not None else f"{task.prompt.where}: {one_line(error)}"

    def _encode(self, task: Task) -> _EncodedPrompt:
        if task.prompt.problem is not None:
            raise ValueError(task.prompt.problem)
        own, messages = task.prompt.options, task.prompt.messages
        if "system" in own and not self._args.chat:
            raise ValueError("system: has a place in a chat template only; add --chat")
        if messages is None and self._args.chat:
            messages = answering.chat_messages(task.prompt.text, own.get("system", self._args.system))
        text, ids = answering.encode(self._model, self._tokenizer, task.prompt.text, messages)
        return _EncodedPrompt(task, text, ids, answering.length_limit(self._model, self._given, len(ids)))

    def _batch_key(self, prompt: _EncodedPrompt) -> Any:
        """Return a key: prompts with equal keys have the same texts in one batch as alone, up to rounding error."""
        options = resolve(self._model, self._options)
        rope = self._model.config.rope_parameters.get("rope_type")
        if rope in LENGTH_DEPENDENT or options.prompt_lookup_num_tokens is not None or not prompt.ids:
            return prompt.task.prompt.index
        padded = any(getattr(options, name) for name in _COUNT_PADDING)
        return prompt.limit if options.num_beams > 1 else None, len(prompt.ids) if padded else None

    def _answer(self, prompts: list[_EncodedPrompt]) -> dict[int, Result]:
        """Answer a batch; if it fails, answer each prompt alone, so that only the wrong ones fail."""
        try:
            return dict(self._generate(prompts))
        except _FAILURES as error:
            if len(prompts) == 1:
                return {prompts[0].task.prompt.index: self._failed(prompts[0].task, error)}
        return {index: result for prompt in prompts for index, result in self._answer([prompt]).items()}

    def _generate(self, prompts: list[_EncodedPrompt]) -> Iterator[tuple[int, Result]]:
        limit = min(prompt.limit for prompt in prompts)
        padded = pad_prompts([prompt.ids for prompt in prompts])
        longest = padded["input_ids"].shape[1]
        out = self._model.generate(
            padded["input_ids"],
            attention_mask=padded["attention_mask"],
            seed=[prompt.task.seed for prompt in prompts],
            max_new_tokens=limit,
            num_return_sequences=1,
            return_dict_in_generate=True,
            output_scores=False,
            output_logits=False,
            pad_token_id=0,  # any one will do: it is masked before a text, and cut off after it
            **self._options,
        )
        texts = [sequence[longest:end] for sequence, end in zip(out.sequences, out.lengths, strict=True)]
        del out  # the cache
        for prompt, new in zip(prompts, texts, strict=True):
            transcript = Transcript(self._tokenizer, self._given["stop"], None)
            transcript.put(np.array([prompt.ids]))
            transcript.put(new[None])
            transcript.close(answering.finish_reason(self._model, transcript, len(new) >= limit, self._given))
            if transcript.finish_reason == "length" and limit < prompt.limit:  # another prompt has a lower limit
                yield from self._generate([prompt])
            else:
                echo = prompt.text if self._args.echo else ""
                yield prompt.task.prompt.index, answering.result_fields(transcript, prompt.task.seed, echo=echo)
