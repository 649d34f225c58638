"""A text of made-up sentences, a corpus of it, and a run of a very small model on that."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import refdiff
from refdiff.training.data import Corpus
from refdiff.training.settings import Settings
from refdiff.training.train import Trainer

WORDS = ("king", "queen", "forest", "little", "once", "there", "lived", "and", "the", "fox", "dream", "golden")


def tale(documents: int = 60) -> str:
    rng = np.random.default_rng(0)
    made = [" ".join(rng.choice(WORDS, rng.integers(5, 60))) + ".\n" for _ in range(documents)]
    return "<|endoftext|>\n".join(made)


@pytest.fixture(scope="session")
def _corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    (folder / "text.txt").write_text(tale(), encoding="utf-8")
    return Corpus.from_text(folder / "text.txt", folder / "corpus", vocab_size=270, validation=0.1).folder


@pytest.fixture
def start(_corpus: Path, tmp_path: Path) -> Callable[..., Trainer]:
    """Begin a run in a folder of its own: `start(name, variant=…, steps=…, …)`."""

    def start(
        name: str = "run", *, variant: str = "hf", dtype: str = "float32", backend: Any = "numpy", device: Any = None,
        **settings: Any,
    ) -> Trainer:  # fmt: skip
        out = tmp_path / name
        shutil.copytree(_corpus, out / "corpus")
        corpus = Corpus(out / "corpus")
        config = refdiff.DiffLlamaConfig(
            vocab_size=270, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
            num_key_value_heads=2, head_dim=8, variant=variant, tie_word_embeddings=True, max_position_embeddings=32,
            bos_token_id=corpus.separator, eos_token_id=corpus.separator, pad_token_id=None,
        )  # fmt: skip
        given = {"max_steps": 6, "batch_size": 4, "context": 16, "warmup_steps": 2, "learning_rate": 1e-2}
        given |= {"evaluate_every": 0, "save_every": 2, "sample_every": 0}
        place = {"backend": backend, "device": device}
        return Trainer.start(out, config, corpus, Settings(**(given | settings)), dtype=dtype, **place)

    return start
