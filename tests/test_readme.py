"""What the README says: its code runs, its tree and its links are there."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import refdiff
from refdiff.cli.options import build_parser
from refdiff.model.config_checks import MODEL_TYPES

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "refdiff"
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")


def _blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", TEXT, flags=re.MULTILINE | re.DOTALL)


def test_the_python_code_runs(tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = (block for block in _blocks("python") if "output_attentions" in block)
    names: dict[str, Any] = {}
    exec(code.replace("PATH_OR_REPO", str(tiny_checkpoint)), names)
    B, T = names["inputs"]["input_ids"].shape
    out, config = names["out"], names["model"].config
    assert names["ids"].shape[1] > T
    assert capsys.readouterr().out
    assert out.logits.shape == (B, T, config.vocab_size)
    assert out.attentions[0].shape == (B, config.num_attention_heads, T, T)
    assert out.differential_attentions[0].shape == (B, config.num_attention_heads // 2, T, T)
    assert len(out.lambdas) == config.num_hidden_layers


def test_the_python_code_that_converts_runs(tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = (block for block in _blocks("python") if "convert" in block)
    names: dict[str, Any] = {}
    exec(code.replace("PATH_OR_REPO", str(tiny_checkpoint)), names)
    assert "2 attention layers in both wirings" in capsys.readouterr().out
    a, b = (names[model]([[0, 5, 7]]).logits for model in ("model", "same"))
    assert np.abs(a - b).max() < 1e-5 * np.abs(a).max()


def test_the_table_of_conversions_is_what_convert_does() -> None:
    lines = TEXT.split("<!-- conversions -->")[1].split("<!-- end -->")[0].strip().splitlines()
    head, _, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in lines)
    wirings = [cell.split()[1] for cell in head[1:]]
    assert [row[0] for row in rows] == wirings == list(MODEL_TYPES)
    for one, *cells in rows:
        for other, cell in zip(wirings, cells, strict=True):
            config, outcome = refdiff.DiffLlamaConfig(wiring=one), ""
            try:
                refdiff.convert.convert(config, {"layers": []}, other)
            except ValueError as error:
                outcome = "refused: the norm" if "the norm after attention" in str(error) else str(error)
            assert cell.startswith(outcome or ("exact" if one != other else "")), f"{one} to {other}: {outcome}"
            assert bool(cell) == (one != other)


def test_the_mistake_in_the_kernel_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = (block for block in _blocks("python") if "oracle.diagnose" in block)
    exec(code, {})
    said = capsys.readouterr().out
    assert said.startswith("fail")
    assert "\nunique: neighbors_are_a_pair\n" in said
    assert "github.com/microsoft/unilm" in said


@pytest.mark.slow
def test_the_commands_run(tiny_checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text('{"prompt": "a", "max_new_tokens": 3}\n')
    lines = [line.split("#")[0] for block in _blocks("sh") for line in block.splitlines()]
    # the hub; what takes long, a cluster, and a card, have tests of their own
    elsewhere = ("kajuma/", "refdiff bench", "refdiff train", "--dask", "--selftest", "--backend cupy")
    commands = [
        shlex.split(line)
        for line in lines
        if line.startswith("refdiff") and not any(word in line for word in elsewhere)
    ]
    assert len(commands) >= 8
    for command in commands:
        arguments = [word.replace("PATH_OR_REPO", str(tiny_checkpoint)) for word in command[1:]]
        subprocess.run(
            [sys.executable, "-m", "refdiff", *arguments],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(Path(refdiff.__file__).parents[1])},
            check=True,
            capture_output=True,
        )
    assert (tmp_path / "out.jsonl").read_bytes().count(b"\n") == 1


def test_the_commands_for_a_card_are_ones_that_there_are() -> None:
    section = TEXT.split("## On a CUDA card")[1].split("\n## ")[0]
    commands = [shlex.split(line.split("#")[0]) for line in section.splitlines() if line.startswith("refdiff ")]
    assert [command[1] for command in commands] == ["generate", "bench"]
    assert {build_parser().parse_args(command[1:]).backend for command in commands} == {"cupy"}
    assert (ROOT / "tests" / "gpu_run.sh").exists()
    listed = (ROOT / "tests" / "gpu_reports" / "README.md").read_text()
    reports = [path for path in (ROOT / "tests" / "gpu_reports").glob("*.md") if path.name != "README.md"]
    assert ("Nothing yet" in listed) == ("has run on a card yet" in section) == (not reports)


def test_the_tree_is_the_one_that_is_there() -> None:
    block = TEXT.split("<!-- tree -->")[1].split("<!-- end -->")[0]
    named = re.findall(r"^[│├└─ ]*([\w.]+\.py|\w+/)", block, flags=re.MULTILINE)
    assert len(named) > 10
    known = {p.name for p in PACKAGE.rglob("*.py")} | {f"{p.name}/" for p in [*ROOT.iterdir(), *PACKAGE.rglob("*")]}
    assert not [name for name in named if name not in known]
    top = {
        f"{path.name}/" if path.is_dir() else path.name
        for path in PACKAGE.iterdir()
        if not path.name.startswith("_") and path.name != "py.typed"
    }
    assert not top - set(named)


def test_links_lead_to_files_that_are_there() -> None:
    targets = [target for target in re.findall(r"\]\(([^)#]+)\)", TEXT) if "://" not in target]
    assert targets
    assert not [target for target in targets if not (ROOT / target).exists()]
