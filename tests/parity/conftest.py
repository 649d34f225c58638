"""The checkpoints of checkpoints.py, each written once a session and only when a test asks for it."""

from __future__ import annotations

import importlib.util
import os
import zlib
from collections import defaultdict
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

import refdiff
from tests.parity.checkpoints import Recipe, recipes, write
from tests.parity.float64_transformers import Peer, float64_peer

os.environ["TRITON_INTERPRET"] = "1"  # read where triton is first imported, which any test may do
torch.set_num_threads(1)
transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()

RECIPES = recipes()
collect_ignore = [] if importlib.util.find_spec("triton") else ["test_triton.py"]  # Linux alone has a Triton


class Checkpoint:
    """A folder that transformers wrote, and the models made of it."""

    def __init__(self, recipe: Recipe, folder: Path) -> None:
        self.recipe = recipe
        self.folder = write(recipe, folder)

    @property
    def architecture(self) -> str:
        return self.recipe.architecture

    @property
    def pooled(self) -> bool:
        return self.architecture == "DiffLlamaForSequenceClassification"

    @cached_property
    def truth(self) -> Peer:
        """transformers in float64, eager attention: gives attention maps, takes additive 4-D masks."""
        return float64_peer(self.folder, self.architecture)

    def fresh_truth(self) -> Peer:
        """The same, remembering no earlier length (dynamic RoPE does, in transformers) and no earlier labels' kind."""
        self.truth.model.config.problem_type = self.recipe.config.get("problem_type")
        if self.recipe.config["rope_parameters"]["rope_type"] != "dynamic":
            return self.truth
        return float64_peer(self.folder, self.architecture)

    def fresh_sdpa(self) -> Peer:
        """transformers in float64 with its default attention: zeros for rows that see nothing, takes boolean masks."""
        return float64_peer(self.folder, self.architecture, attention="sdpa")

    def load(self, kernels: str = "fast", dtype: str = "float64", folder: Path | None = None) -> Any:
        """refdiff's model of this checkpoint, or of another folder with the same class."""
        return getattr(refdiff, self.architecture).from_pretrained(folder or self.folder, dtype=dtype, kernels=kernels)

    @cached_property
    def fast(self) -> Any:
        return self.load("fast")

    @cached_property
    def reference(self) -> Any:
        return self.load("reference")

    def rng(self, purpose: str) -> np.random.Generator:
        """Random numbers for this checkpoint and purpose, the same in whatever order the tests run."""
        return np.random.default_rng((self.recipe.index, zlib.crc32(purpose.encode())))

    def ids(self, batch: int = 3, length: int = 12, purpose: str = "ids") -> np.ndarray:
        """Token ids without the padding token, so that padding is where a test puts it."""
        config = self.recipe.config
        allowed = np.setdiff1d(np.arange(config["vocab_size"]), [config["pad_token_id"] or 0])
        return self.rng(purpose).choice(allowed, (batch, length))


@pytest.fixture(scope="session")
def _made() -> dict[int, Checkpoint]:
    return {}


@pytest.fixture(params=RECIPES, ids=str)
def checkpoint(
    request: pytest.FixtureRequest, _made: dict[int, Checkpoint], tmp_path_factory: pytest.TempPathFactory
) -> Checkpoint:
    """Each of the random checkpoints in turn."""
    recipe: Recipe = request.param
    if recipe.index not in _made:
        _made[recipe.index] = Checkpoint(recipe, tmp_path_factory.mktemp("checkpoint") / str(recipe.index))
    return _made[recipe.index]


def of(*architectures: str) -> pytest.MarkDecorator:
    """The checkpoints of these classes."""
    chosen = [recipe for recipe in RECIPES if recipe.architecture in architectures]
    assert len(chosen) >= 7
    return pytest.mark.parametrize("checkpoint", chosen, ids=str, indirect=True)


@pytest.fixture(params=["fast", "reference"])
def ours(request: pytest.FixtureRequest, checkpoint: Checkpoint) -> Any:
    """refdiff's model of the checkpoint in float64, with fast kernels and with the equations as written."""
    return getattr(checkpoint, request.param)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Deal the kernels and up to three cases of each test among the checkpoints; the other ones run every night."""
    dealt = defaultdict[Any, list[pytest.Item]](list)
    for item in items:
        params = item.callspec.params if hasattr(item, "callspec") else {}
        if "checkpoint" in params:
            dealt[item.nodeid.partition("[")[0], params["checkpoint"].index, params.get("ours")].append(item)
    for (_, index, kernels), cases in dealt.items():
        every = min(len(cases), 3)
        for i, item in enumerate(cases):
            if kernels == ("fast", "reference")[1 - index % 2] or i % every != index // 2 % every:
                item.add_marker(pytest.mark.nightly)
