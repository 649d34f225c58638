"""The guides for authors in torch, JAX and MLX, and for traces: every block is run. test_triton.py has Triton's."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from refdiff import oracle
from tests.oracle.test_guides import blocks, run_all, run_python

ROOT = Path(__file__).parents[2]


def test_the_guide_for_torch(capsys: pytest.CaptureFixture[str]) -> None:
    run_python("torch")
    said, (printed,) = capsys.readouterr().out, blocks("torch", "text")
    assert said.startswith("pass")
    found = [line for line in said.splitlines() if line.startswith(("pass,", "fail", "unique"))]
    modules, plain, pages = found[:3], found[3:5], found[5:7]
    assert [line.partition(",")[0] for line in (*modules, plain[0], pages[0])] == ["pass"] * 5
    assert [plain[1], pages[1]] == ["unique: scores_scaled_by_sqrt_v_dim", "unique: last_page_lost"]
    assert said.endswith(f"\n{printed}")
    for name in ("AttentionInterface", "AttentionMaskInterface"):
        del getattr(transformers, name)._global_mapping["mine"]


def test_the_guide_for_jax(capsys: pytest.CaptureFixture[str]) -> None:
    names = run_python("jax")
    assert "dlambda_q1" in names["grads"]
    assert capsys.readouterr().out.startswith("pass")


def test_the_guide_for_mlx(capsys: pytest.CaptureFixture[str]) -> None:
    run_python("mlx")
    assert capsys.readouterr().out.startswith("unique: keys_swapped")


def test_the_guide_for_traces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    said = run_all(blocks("traces", "python|sh"), tmp_path)
    assert said[-1].startswith("pass, judged as float32")
    assert "\nnothing diverges" in capsys.readouterr().out


MISTAKES = {
    "torch": ("repeat_interleave(q.shape[1] // x.shape[1], dim=1)", "repeat(1, 4, 1, 1)", "key_heads_tiled"),
    "jax": ("jnp.repeat(x, q.shape[1] // x.shape[1], axis=1)", "jnp.tile(x, (1, 4, 1, 1))", "key_heads_tiled"),
    "mlx": ("/ q.shape[-1] ** 0.5", "/ q.shape[-1]", "scale = 0.03125"),
    "triton": ("keys[None, :] <= rows[:, None] + S - T", "keys[None, :] < rows[:, None] + S - T", "own_key_masked"),
    "cuda": ("row / T % H / (H / K)", "row / T % H % K", "key_heads_tiled"),
}
"""For each guide, a part of its test or kernel, what a mistake puts there, and its name."""


@pytest.mark.parametrize("guide", MISTAKES)
def test_two_lines_of_a_test_change(guide: str, tmp_path: Path, outside: dict[str, str]) -> None:
    """The test before passes; the test after passes too, and with a mistake it fails and names it."""
    (lines,) = (block.splitlines() for block in blocks(guide, "diff"))
    assert [sum(line.startswith(sign) for line in lines) for sign in "-+"] == [2, 2]
    old, new, name_of_it = MISTAKES[guide]
    kernels = {}
    if guide == "triton":
        code = "\n\n".join(blocks("triton", "python")).partition("\ndef kernel(")[0].splitlines()
        kernels = {"attention.py": "\n".join(line for line in code if "oracle" not in line)}
        assert "refdiff" not in kernels["attention.py"]
    if guide == "cuda":
        (library,) = (block for block in blocks("cuda", "sh") if block.startswith("cat >plain.c"))
        kernels = {"build.sh": library}
    after = [line[1:] for line in lines if not line.startswith("-")]
    for name, code in {"before": [line[1:] for line in lines if not line.startswith("+")], "after": after}.items():
        (tmp_path / name).mkdir()
        for file, text in {**kernels, "test_mine.py": "\n".join(code)}.items():
            (tmp_path / name / file).write_text(text, encoding="utf-8")
        build(tmp_path / name)
    assert "1 passed" in run_pytest(tmp_path / "before", outside)
    assert "1 passed" in run_pytest(tmp_path / "after", outside)
    (file,) = (path for path in (tmp_path / "after").glob("*.[ps][yh]") if old in path.read_text(encoding="utf-8"))
    file.write_text(file.read_text(encoding="utf-8").replace(old, new), encoding="utf-8")
    build(tmp_path / "after")
    said = run_pytest(tmp_path / "after", outside)
    assert "1 failed" in said
    assert f"diagnosis: unique: {name_of_it}\n" in said, said


def build(folder: Path) -> None:
    if (folder / "build.sh").exists():
        subprocess.run(["bash", "-euo", "pipefail", "build.sh"], cwd=folder, check=True)


def run_pytest(folder: Path, outside: dict[str, str]) -> str:
    command = [sys.executable, "-m", "pytest", "-p", "refdiff.pytest_plugin", "-p", "no:cacheprovider", "-q"]
    environment = {**outside, "PYTHONPATH": f"{ROOT}{os.pathsep}{folder}", "PYTEST_ADDOPTS": "-p no:refdiff"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    return done.stdout + done.stderr


def test_bfloat16_in_torch() -> None:
    """The function of the page of five minutes, for tensors of bfloat16 and of other types."""
    page = (ROOT / "notebooks" / "reference" / "guides" / "five_minutes.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"^<!-- bfloat16 in torch -->\n```python\n(.*?)^```", page, re.M | re.S)
    names: dict[str, Any] = {"torch": torch}
    exec(code, names)
    for dtype in ("bfloat16", "float32", "float16"):
        case = oracle.cases("natural", seed=1, spec="attention", dtype=dtype)[0]
        q, k, v = (names["tensor"](case.inputs[name]) for name in "qkv")
        assert q.dtype == getattr(torch, dtype)
        seen = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool).tril(k.shape[2] - q.shape[2])
        out = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=seen, enable_gqa=True)
        assert oracle.check(out, case.spec, case.inputs, recipe=dtype).status == "pass"
