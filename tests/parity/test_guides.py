"""The guides for authors in torch or Triton, JAX and MLX: every block is run."""

from __future__ import annotations

import pytest

from tests.oracle.test_guides import run_python


def test_the_guide_for_triton(capsys: pytest.CaptureFixture[str]) -> None:
    run_python("triton")
    assert capsys.readouterr().out == "pass\n"


def test_the_guide_for_jax(capsys: pytest.CaptureFixture[str]) -> None:
    names = run_python("jax")
    assert "dlambda_q1" in names["grads"]
    assert capsys.readouterr().out.startswith("pass")


def test_the_guide_for_mlx(capsys: pytest.CaptureFixture[str]) -> None:
    run_python("mlx")
    assert capsys.readouterr().out.startswith("unique: keys_crossed")
