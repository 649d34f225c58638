"""text → labels of tokens or of entities."""

from __future__ import annotations

from itertools import accumulate
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from refdiff.generation.sampling import softmax
from refdiff.generation.tokenizer.config import NO_LIMIT
from refdiff.pipelines.base import Pipeline, Process

_STRATEGIES = ("none", "simple", "first", "average", "max")
Entity = dict[str, Any]


class TokenClassificationPipeline(Pipeline):
    """The labels of a text's tokens: `entity`, `score`, `index`, `word`, `start`, `end` (characters) for each.

    An `aggregation_strategy` groups tokens into entities, with `entity_group` instead of `entity` and `index`. A label
    B-X begins a group and I-X continues it. "simple" groups tokens by their labels. The other strategies first give
    each word one label: that of its first token ("first"), of its token with the highest score ("max"), or of the mean
    scores ("average"). Words are separated by spaces, unless the tokenizer marks tokens inside words.
    """

    task: ClassVar[str] = "token-classification"
    architecture: ClassVar[str] = "DiffLlamaForTokenClassification"

    def __call__(self, inputs: Any, **options: Any) -> Any:
        """Label one text, or a list or iterator of texts; a text may be a list of words."""
        split = {**self.options, **options}.get("is_split_into_words") and isinstance(inputs, list)
        one = split and not all(isinstance(item, list) for item in inputs)
        return super().__call__([inputs] if one else inputs, **options)

    def process(
        self,
        item: Any,
        *,
        aggregation_strategy: str = "none",
        ignore_labels: list[str] | None = None,
        stride: int | None = None,
        is_split_into_words: bool = False,
        delimiter: str | None = " ",
    ) -> Process:
        """Label one text.

        ignore_labels: labels that are left out of the result (default: `["O"]`).
        stride: split a text longer than the tokenizer's model_max_length into chunks that share so many tokens; needs
            an aggregation_strategy.
        is_split_into_words: the text is a list of words; `delimiter`, a space, joins them for `start` and `end`.
        """
        if not isinstance(item, list if is_split_into_words else str):
            expected = "a list of words, or of such lists" if is_split_into_words else "a text or a list of texts"
            raise TypeError(f"inputs: got {type(item).__name__}, expected {expected}")
        words = [str(word) for word in (item if is_split_into_words else [item])]
        delimiter = " " if delimiter is None else delimiter
        starts = list(accumulate((len(word) + len(delimiter) for word in words), initial=0))
        strategy = str(aggregation_strategy).lower()
        if strategy not in _STRATEGIES:
            raise ValueError(f"aggregation_strategy: got {aggregation_strategy!r}, expected one of {_STRATEGIES}")
        if stride is not None and strategy == "none":
            raise ValueError(
                f"stride: got {stride} with aggregation_strategy 'none', expected None; pass another "
                "aggregation_strategy, which merges the chunks"
            )
        ignored = ["O"] if ignore_labels is None else ignore_labels
        truncation = 0 < self.tokenizer.model_max_length <= NO_LIMIT
        (first_chunk,) = self.tokenizer.encodings(
            item, truncation=truncation, stride=stride or 0, is_split_into_words=is_split_into_words
        )
        chunks = [first_chunk] if stride is None else [first_chunk, *first_chunk.overflowing]
        found: list[Entity] = []
        chunks = [chunk for chunk in chunks if chunk.ids]
        outputs = yield [{"input_ids": chunk.ids} for chunk in chunks]
        for chunk, (logits, *_) in zip(chunks, outputs, strict=True):
            places = [
                (a + starts[word], b + starts[word]) if is_split_into_words and word is not None else (a, b)
                for (a, b), word in zip(chunk.offsets, chunk.word_ids, strict=True)
            ]
            tokens = self._tokens(delimiter.join(words), chunk, places, softmax(logits))
            entities = self._aggregate(tokens, strategy)
            found += [entity for entity in entities if entity.get("entity", entity.get("entity_group")) not in ignored]
        return _remove_overlaps(found) if len(chunks) > 1 else found

    def _tokens(self, text: str, encoding: Any, places: list[tuple[int, int]], scores: NDArray[Any]) -> list[Entity]:
        prefix = self.tokenizer.backend.model("continuing_subword_prefix")
        tokens = []
        for index, (token_id, (start, end)) in enumerate(zip(encoding.ids, places, strict=True)):
            if encoding.special_tokens_mask[index]:
                continue
            word, written = encoding.tokens[index], text[start:end]
            inside = len(word) != len(written) if prefix else start > 0 and " " not in text[start - 1 : start + 1]
            if token_id == self.tokenizer.unk_token_id:
                word, inside = written, False
            tokens.append(
                {"word": word, "scores": scores[index], "start": start, "end": end, "index": index, "inside": inside}
            )
        return tokens

    def _aggregate(self, tokens: list[Entity], strategy: str) -> list[Entity]:
        if strategy in ("none", "simple"):
            entities = []
            for token in tokens:
                label, score = self._label(token["scores"])
                entity = {"entity": label, "score": score}
                entities.append(entity | {name: token[name] for name in ("index", "word", "start", "end")})
        else:
            entities = [self._merge_word(word, strategy) for word in _group_words(tokens)]
        return entities if strategy == "none" else self._group_entities(entities)

    def _merge_word(self, tokens: list[Entity], strategy: str) -> Entity:
        if strategy == "first":
            scores = tokens[0]["scores"]
        elif strategy == "max":
            scores = max(tokens, key=lambda token: token["scores"].max())["scores"]
        else:
            scores = np.nanmean(np.stack([token["scores"] for token in tokens]), axis=0)
        label, score = self._label(scores)
        text = self.tokenizer.convert_tokens_to_string([token["word"] for token in tokens])
        return {"entity": label, "score": score, "word": text, "start": tokens[0]["start"], "end": tokens[-1]["end"]}

    def _group_entities(self, entities: list[Entity]) -> list[Entity]:
        groups: list[list[Entity]] = []
        for entity in entities:
            begins, tag = _split_label(entity["entity"])
            if groups and not begins and tag == _split_label(groups[-1][-1]["entity"])[1]:
                groups[-1].append(entity)
            else:
                groups.append([entity])
        return [
            {
                "entity_group": group[0]["entity"].split("-", 1)[-1],
                "score": np.nanmean([entity["score"] for entity in group]),
                "word": self.tokenizer.convert_tokens_to_string([entity["word"] for entity in group]),
                "start": group[0]["start"],
                "end": group[-1]["end"],
            }
            for group in groups
        ]

    def _label(self, scores: NDArray[Any]) -> tuple[str, Any]:
        best = int(scores.argmax())
        return self.model.config.id2label[best], scores[best]


def _group_words(tokens: list[Entity]) -> list[list[Entity]]:
    words: list[list[Entity]] = []
    for token in tokens:
        if words and token["inside"]:
            words[-1].append(token)
        else:
            words.append([token])
    return words


def _split_label(label: str) -> tuple[bool, str]:
    """Return whether a label begins a group, and the label without B- or I-."""
    return label.startswith("B-"), label[2:] if label.startswith(("B-", "I-")) else label


def _remove_overlaps(entities: list[Entity]) -> list[Entity]:
    """Of entities that overlap, keep the longer one, or if they have one length that with the higher score."""
    kept: list[Entity] = []
    for entity in sorted(entities, key=lambda entity: entity["start"]):
        last = kept[-1] if kept else None
        if last is None or not last["start"] <= entity["start"] < last["end"]:
            kept.append(entity)
        elif (entity["end"] - entity["start"], entity["score"]) > (last["end"] - last["start"], last["score"]):
            kept[-1] = entity
    return kept
