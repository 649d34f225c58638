"""Bits are counted as they are, and where numbers end is said."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest

from refdiff.training.evaluate import TrainingError, evaluate
from refdiff.training.train import Trainer

Start = Callable[..., Trainer]


def test_bits_per_byte_of_a_model_that_knows_nothing(start: Start) -> None:
    """All logits equal: each token costs log₂ V bits, whatever it is."""
    trainer = start()
    trainer.model.params["model"]["embed_tokens"]["weight"][...] = 0
    found = trainer.evaluate()
    tokens = len(trainer.corpus.tokens["validation"]) - 1
    assert found["validation"] == pytest.approx(math.log(270), rel=1e-6)
    expected = tokens * math.log2(270) / trainer.corpus.num_bytes["validation"]
    assert found["bits_per_byte"] == pytest.approx(expected, rel=1e-6)


def test_a_loss_that_is_no_number_is_located(start: Start) -> None:
    trainer = start()
    corpus = trainer.corpus
    unused = sorted(set(range(270)) - set(corpus.tokens["validation"].tolist()))[0]
    weight = trainer.model.params["model"]["embed_tokens"]["weight"]  # of the output matrix too
    weight[unused] = np.nan
    with pytest.raises(TrainingError, match="the validation loss is nan, and only the output matrix's result is not"):
        evaluate(trainer.model, corpus, 16, 4)
    weight[...] = np.nan
    with pytest.raises(TrainingError, match="the validation loss is nan, and the embeddings are not finite"):
        evaluate(trainer.model, corpus, 16, 4)
