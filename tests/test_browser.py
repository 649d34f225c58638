"""What a browser has not. In one these run as tests/browser/test_pyodide.py; here its marks are set by hand."""

from __future__ import annotations

import configparser
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from packaging.requirements import Requirement

import refdiff
from refdiff import arrays, browser, bundled
from refdiff.layers import embedding
from tests.layers.inputs import says

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    ("inside", "fix"), [(False, "pip install no_such_package"), (True, "use Python outside of a browser, where")]
)
def test_a_package_that_is_missing_is_named_with_the_fix(
    monkeypatch: pytest.MonkeyPatch, inside: bool, fix: str
) -> None:
    monkeypatch.setattr(browser, "IN_BROWSER", inside)
    with pytest.raises(ImportError) as raised:
        browser.require("no_such_package", "this test")
    begin = (
        "this test needs the package no_such_package, which cannot be imported (No module named 'no_such_package'): "
    )
    assert str(raised.value).startswith(begin + fix)
    assert raised.value.name == "no_such_package"


def test_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    browser.require_processes("this test")
    monkeypatch.setattr(browser, "IN_BROWSER", True)
    with says(RuntimeError, "this test starts processes, which no browser has: use Python outside of one"):
        browser.require_processes("this test")


def test_indices_become_pointers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of wider ones, as int64 is where a pointer has 32 bits, NumPy says that they cannot be cast safely."""
    real, table = np.take, np.arange(12.0).reshape(4, 3)

    def strict(x: Any, indices: Any, axis: int) -> Any:
        if indices.dtype != np.intp:
            raise TypeError("Cannot cast array data according to the rule 'safe'")
        return real(x, indices, axis=axis)

    monkeypatch.setattr(np, "take", strict)
    ids = np.array([3, 1], np.int32 if np.intp is np.int64 else np.int64)
    np.testing.assert_array_equal(embedding(ids, table), table[[3, 1]])
    np.testing.assert_array_equal(arrays.take(table, ids[:1]), table[[3]])


def test_saving_to_one_file_needs_no_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    model = refdiff.DiffLlamaForCausalLM.from_pretrained("bundled")
    model.save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").stat().st_size == (bundled.FOLDER / "model.safetensors").stat().st_size
    with pytest.raises(ImportError, match="saving to several files needs the package huggingface_hub"):
        model.save_pretrained(tmp_path, max_shard_size="1MB")


def test_requirements_in_a_browser_are_available_there() -> None:
    """Of the packages with compiled code, NumPy is in Pyodide; the others are left out in a browser."""
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    lines = [x for x in setup["options"]["install_requires"].split("\n") if x.strip() and not x.startswith("#")]
    here = {"sys_platform": "emscripten", "python_version": "3.12"}
    kept = {r.name for r in map(Requirement, lines) if r.marker is None or r.marker.evaluate(here)}
    assert kept == {"array-api-compat", "jinja2", "numpy", "threadpoolctl", "tqdm"}
