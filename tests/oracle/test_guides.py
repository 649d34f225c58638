"""What the guides say is run: here the one that needs no framework, among the parity tests the others."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import refdiff
from refdiff.oracle import Recipe, cases
from refdiff.oracle.cases.fixed import PROFILES, small_spec
from refdiff.oracle.spec.presets import PRESETS

GUIDES = Path(refdiff.__file__).parent / "oracle" / "guides"
SOURCE = Path(__file__).parents[2] / "refdiff" / "oracle" / "guides"  # an installed package has no tests beside it
NAMES = ("cuda", "jax", "mlx", "torch", "traces", "triton", "vectors")


def blocks(guide: str, language: str) -> list[str]:
    text = (GUIDES / f"{guide}.md").read_text(encoding="utf-8")
    return re.findall(rf"^```(?:{language})\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)


def run_python(guide: str) -> dict[str, Any]:
    """Every block of Python in turn, in one namespace."""
    names: dict[str, Any] = {}
    for block in blocks(guide, "python"):
        exec(block, names)
    return names


def run_all(parts: list[str], folder: Path) -> list[str]:
    """Run blocks of Python and of commands, each of which needs what those above it wrote; what commands print."""
    environment = {**os.environ, "PYTHONPATH": str(Path(refdiff.__file__).parents[1])}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    names: dict[str, Any] = {}
    said = []
    for block in parts:
        if block.startswith("cat >"):
            subprocess.run(["bash", "-euo", "pipefail", "-c", block], cwd=folder, env=environment, check=True)
            continue
        if not block.startswith("refdiff "):
            exec(block, names)
            continue
        for line in block.splitlines():
            command = [sys.executable, "-m", *shlex.split(line)]
            done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
            wrong = line.startswith(("refdiff trace --compare mine", "refdiff judge libmine.so"))
            assert done.returncode == wrong, done.stderr
            said.append(done.stdout)
    return said


@pytest.mark.slow
def test_the_guide_for_traces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As far as it needs no torch."""
    monkeypatch.chdir(tmp_path)
    parts = blocks("traces", "python|sh")
    said = run_all(parts[: next(i for i, block in enumerate(parts) if "torch" in block)], tmp_path)
    (printed,) = blocks("traces", "text")
    assert said[2].startswith(printed)
    assert capsys.readouterr().out == "model.layers.2.self_attn.diff\nA None\nB k_rope\n"


@pytest.mark.slow
def test_the_guide_for_cuda(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    said = run_all(blocks("cuda", "python|sh"), tmp_path)
    assert len(said) == 7
    assert said[0].startswith("fail: ")
    assert said[2] == "pass: cases with an output: 5; tensors judged: 5\n"


KERNEL = """
import numpy as np


def kernel(inputs):
    if inputs.keys() != {"q", "k", "v", "dout"}:
        return NotImplemented
    q, k, v = (inputs[name] for name in "qkv")
    k, v = (np.repeat(x, q.shape[1] // k.shape[1], axis=1) for x in (k, v))
    t, s = np.arange(q.shape[2])[:, None] + k.shape[2] - q.shape[2], np.arange(k.shape[2])
    scores = np.where((s <= t) & (s > t - WINDOW), q @ k.swapaxes(2, 3) / 4, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True, initial=-1e9))
    return weights / np.maximum(weights.sum(-1, keepdims=True), 1e-30) @ v
"""


@pytest.mark.parametrize(("window", "passes"), [("5", True), ("4", False)])
def test_the_guide_for_vectors(
    window: str, passes: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, outside: dict[str, str]
) -> None:
    monkeypatch.chdir(tmp_path)
    run_all(blocks("vectors", "python|sh"), tmp_path)
    (tmp_path / "mykernel.py").write_text(KERNEL.replace("WINDOW", window))
    command = [sys.executable, "-m", "pytest", "-p", "no:refdiff", "-p", "no:cacheprovider", "vectors"]
    done = subprocess.run(
        command, cwd=tmp_path, env={**outside, "PYTHONPATH": str(tmp_path)}, capture_output=True, text=True
    )
    assert (" 4 passed, 1 skipped" if passes else " 3 failed, 1 passed, 1 skipped") in done.stdout, done.stdout


@pytest.mark.parametrize("guide", NAMES)
def test_links_and_commands(guide: str) -> None:
    text = (GUIDES / f"{guide}.md").read_text(encoding="utf-8")
    prose = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    for link in re.findall(r"\]\(([^)]+)\)", prose):
        assert link.startswith("https://") or (SOURCE / link.partition("#")[0]).resolve().exists(), link
    titles = {"traces": "# A model that ", "vectors": "# The files of test vectors"}
    assert text.startswith(titles.get(guide, "# Kernels in "))
    most = {"triton": 285, "torch": 180, "cuda": 205, "vectors": 130, "traces": 125}  # whole kernels are there
    assert len(text.splitlines()) < most.get(guide, 110)
    for block in blocks(guide, "python"):
        compile(block, guide, "exec")


def test_there_is_no_other() -> None:
    assert sorted(path.stem for path in GUIDES.glob("*.md")) == sorted(NAMES)


# The tables of the guide for authors of kernels: inputs of each preset, profiles, and fields of a recipe

GUIDE = Path(__file__).parents[2] / "notebooks" / "reference" / "guides" / "kernels.md"


def input_row(preset: str) -> str:
    """The table's row: sizes of q, k, v, other inputs grouped by size, and the output."""
    spec = small_spec(preset)
    inputs = cases("natural", 0, spec=spec, batch=2, queries=5, keys=7)[0].inputs
    sizes = {name: "×".join(map(str, x.shape)) for name, x in inputs.items()}
    main, other = [sizes.pop(name) for name in "qkv"], dict[str, list[str]]()
    for name, size in sizes.items():
        other.setdefault(size, []).append(f"`{name}`")
    rest = ", ".join(f"{', '.join(names)} {size}" for size, names in other.items()) or "none"
    return f"| `{preset}` | {' | '.join(main)} | {rest} | 2×{spec.heads}×5×{spec.out_dim} |"


def test_names_and_shapes() -> None:
    text = GUIDE.read_text(encoding="utf-8")
    section = text[text.index("### Names and shapes") : text.index("### Motif-3")]
    lines = section.splitlines()
    at = lines.index("|---|---|---|---|---|---|") + 1
    assert lines[at : at + len(PRESETS) + 1] == [*map(input_row, PRESETS), ""]
    listed = section[section.index("The profiles of") : section.index("A `Recipe`")]
    assert re.findall(r"`(\w+)`", listed) == ["cases", *PROFILES]
    fields = re.findall(r"^\| `(\w+)` \| .* \| `(\w+)` \|$", section, re.MULTILINE)
    assert dict(fields) == Recipe("bfloat16").to_dict()
