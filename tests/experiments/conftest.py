"""The runs of tests/training."""

from tests.training.conftest import _corpus, start

__all__ = ["_corpus", "start"]
