"""The results of `generate` with `return_dict_in_generate=True`; the names are transformers'."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from refdiff.model.outputs import Output


@dataclass(repr=False)
class GenerateDecoderOnlyOutput(Output):
    """The result of greedy decoding, sampling and speculative decoding.

    sequences (R, T): prompt and text, padded at the end. lengths (R,): ids of each without that padding. scores and
    logits: one (R, V) array per generated token, after and before the processors; None without `output_scores` and
    `output_logits`. attentions and hidden_states: for each step, the first with the whole prompt, those of every layer
    as a call of the model has them; with `output_attentions` and `output_hidden_states`. cache: keys and values of the
    tokens that were read. sequences_scores and beam_indices: only of beam search.
    """

    unlisted: ClassVar[tuple[str, ...]] = ("lengths",)

    sequences: NDArray[np.int64]
    sequences_scores: NDArray[np.floating] | None = None
    scores: tuple[NDArray[np.floating], ...] | None = None
    logits: tuple[NDArray[np.floating], ...] | None = None
    beam_indices: NDArray[np.int64] | None = None
    attentions: tuple[tuple[Any, ...], ...] | None = None
    hidden_states: tuple[tuple[Any, ...], ...] | None = None
    lengths: NDArray[np.int64] | None = None
    cache: Any = None


class GenerateBeamDecoderOnlyOutput(GenerateDecoderOnlyOutput):
    """The result of beam search and beam sampling: R = B · num_return_sequences sequences, best first.

    sequences_scores (R,): the sum of log-probabilities over length ** length_penalty; only with `output_scores`, as is
    `scores`: one (B · num_beams, V) array a step, log-probabilities after the processors. beam_indices (R, generated):
    the index in `scores` of the beam that each token came from, −1 after the end.
    """
