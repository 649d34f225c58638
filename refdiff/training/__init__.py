"""Text → weights: data, optimizers, and a training loop that may be killed at any moment."""

from refdiff.training.adamw import AdamW
from refdiff.training.data import Corpus
from refdiff.training.evaluate import TrainingError
from refdiff.training.muon import Muon, newton_schulz
from refdiff.training.schedule import clip, global_norm, learning_rate
from refdiff.training.settings import Settings
from refdiff.training.train import Trainer

__all__ = [
    "AdamW",
    "Corpus",
    "Muon",
    "Settings",
    "Trainer",
    "TrainingError",
    "clip",
    "global_norm",
    "learning_rate",
    "newton_schulz",
]
