"""The guides for authors in torch, JAX and MLX, and for traces: every block is run. test_triton.py has Triton's."""

from __future__ import annotations

from pathlib import Path

import pytest
import transformers

from tests.oracle.test_guides import blocks, run_all, run_python


def test_the_guide_for_torch(capsys: pytest.CaptureFixture[str]) -> None:
    run_python("torch")
    said, (printed,) = capsys.readouterr().out, blocks("torch", "text")
    assert said.startswith("pass")
    found = [line for line in said.splitlines() if line.startswith(("pass,", "fail", "unique"))]
    modules, plain, pages = found[:3], found[3:5], found[5:7]
    assert [line.partition(",")[0] for line in (*modules, plain[0], pages[0])] == ["pass"] * 5
    assert [plain[1], pages[1]] == ["unique: scores_scaled_by_sqrt_v_dim", "unique: last_page_lost"]
    assert said.endswith(f"\nTrue\n{printed}")
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
