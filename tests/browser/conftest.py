"""One browser for all tests, pages in files, and axe-core, which is fetched when it is needed."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from refdiff.viz import AttentionMaps, attention_page

from .chromium import Chromium
from .reading import expect_quiet

AXE = "axe-core@4"
WORDS = ("Once", "·upon", "·a", "·time", "·there", "·was", "↵", "·king")


@pytest.fixture(scope="session")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chromium]:
    browser = Chromium(tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


@pytest.fixture
def browser(chromium: Chromium) -> Iterator[Chromium]:
    """The browser; a test that uses it also fails if its page complained or asked for anything."""
    yield chromium
    expect_quiet(chromium, "file:", "data:")


@pytest.fixture(scope="session")
def axe(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The accessibility checker's script."""
    folder = os.environ.get("AXE")
    if folder is None:
        where = tmp_path_factory.mktemp("npm")
        command = ["npm", "install", "--no-audit", "--no-fund", "--prefix", str(where), AXE]
        subprocess.run(command, check=True, capture_output=True)
        folder = str(where / "node_modules")
    return (Path(folder) / "axe-core" / "axe.min.js").read_text(encoding="utf-8")


def drawn_maps(
    variant: str = "hf", *, layers: int = 3, pairs: int = 2, tokens: tuple[str, ...] = WORDS
) -> AttentionMaps:
    """Maps with large and small weights, as no model would have them."""
    rng = np.random.default_rng(0)
    T = len(tokens)
    see = np.tril(np.ones((T, T), dtype=bool))
    scores = np.where(see, rng.normal(size=(2, layers, pairs, T, T)) * 2, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    first, second = weights / weights.sum(-1, keepdims=True)
    if variant == "plain":
        return AttentionMaps(tokens, first, None, first, None, None)
    shape = (layers,) if variant == "hf" else (layers, pairs, T)
    lambdas = rng.uniform(-0.9, 1.9, shape) if variant == "hf" else rng.uniform(0.1, 0.9, shape)  # as trained ones are
    by_query = lambdas[:, None, None, None] if variant == "hf" else lambdas[..., None]
    starts = np.linspace(0.2, 0.6, layers) if variant == "hf" else None
    return AttentionMaps(tokens, first, second, first - by_query * second, lambdas, starts)


@pytest.fixture
def page_of(tmp_path: Path) -> Callable[..., Path]:
    """Write the page of maps: `page_of(maps, layer=…)`."""

    def write(maps: AttentionMaps, **options: Any) -> Path:
        path = tmp_path / "page.html"
        path.write_text(attention_page(maps, **options), encoding="utf-8")
        return path

    return write
