"""README and guides: every block runs as it is pasted, numbers agree, and links lead to files that are there."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import refdiff
from refdiff.cli.parser import build_parser
from refdiff.model.variants import VARIANTS
from refdiff.oracle.spec.presets import PRESETS, VARIANT_PRESETS
from tests.golden import unilm

ROOT = Path(__file__).parents[1]
GUIDES = ROOT / "notebooks" / "reference" / "guides"
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = {"README.md": README} | {path.name: path.read_text(encoding="utf-8") for path in sorted(GUIDES.glob("*.md"))}
ELSEWHERE = {
    "<!-- test commands -->": ".ci/run",
    "<!-- shards -->": "tests/cli/prompts_file/test_run.py",
    "<!-- excerpt -->": "test_the_excerpt_is_of_the_sixty_lines",
    "<!-- five minutes -->": "test_the_page_of_five_minutes",
    "<!-- five minutes in C -->": "test_the_page_of_five_minutes_in_c",
    "<!-- bfloat16 in torch -->": "tests/parity/test_guides.py",
    "--backend cupy": "test_the_commands_for_a_gpu_are_ones_that_there_are",
    "python -m pytest -m slow": ".ci/run",
    "--receipt receipt.safetensors": "tests/cli/test_judge.py",
    "loadPyodide()": "tests/browser/in_node.mjs",
    "--seeds 20": "hours",
    "--against stored": "hours",
}
"""What marks a block that is not run here, and where it is run, or why it is nowhere."""
SLOW = ("refdiff bench --like tiny --quick", "refdiff golden export", "--prompts-file")
"""What takes longer than a quick test may."""


def _blocks() -> list[Any]:
    found = []
    for page, text in PAGES.items():
        for number, match in enumerate(re.finditer(r"(<!-- [^\n]+ -->\n)?^```(\w+)\n(.*?)^```", text, re.M | re.S)):
            marker, language, code = match.groups()
            if not any(mark in (marker or "") + code for mark in ELSEWHERE):
                marks = [pytest.mark.slow] if any(word in code for word in SLOW) else []
                found.append(pytest.param(language, code, id=f"{page}-{number}", marks=marks))
    return found


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A folder that looks like a checkout, in which `refdiff` and `python` are those of this tree."""
    for name in ("README.md", "notebooks", "refdiff"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "bin").mkdir()
    for name, module in (("refdiff", "-m refdiff"), ("python", ""), ("pip", "-c pass")):
        (tmp_path / "bin" / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" {module} "$@"\n')
        (tmp_path / "bin" / name).chmod(0o755)
    return tmp_path


@pytest.mark.parametrize(("language", "code"), _blocks())
def test_the_block_runs_as_it_is_pasted(checkout: Path, language: str, code: str) -> None:
    command = {"sh": ["bash", "-euo", "pipefail", "-c", code], "python": [sys.executable, "-W", "error", "-c", code]}
    paths = {"PATH": f"{checkout / 'bin'}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    env = {**os.environ, **paths, "HF_HUB_OFFLINE": "1", "PYTEST_ADDOPTS": ""}
    ran = subprocess.run(command[language], cwd=checkout, env=env, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout


def test_the_page_of_five_minutes(checkout: Path) -> None:
    """Its commands in turn: the first verdict is the one that is shown, and the mended kernel passes."""
    blocks = re.findall(r"^<!-- five minutes -->\n```(\w+)\n(.*?)^```", PAGES["five_minutes.md"], re.M | re.S)
    code = "".join(text for language, text in blocks if language == "sh")
    paths = {"PATH": f"{checkout / 'bin'}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    env = {**os.environ, **paths, "PYTEST_ADDOPTS": "", "COLUMNS": "80"}
    ran = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", code], cwd=checkout, env=env, capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    ((first, last),) = (text.split("…\n") for language, text in blocks if language == "text")
    assert first in ran.stdout
    assert set(re.sub("residual.*", "", last).splitlines()) <= set(re.sub("residual.*", "", ran.stdout).splitlines())
    assert "exit status 1" in ran.stdout
    assert re.search(r" \d+ passed, \d+ skipped in ", ran.stdout)


@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")
def test_the_page_of_five_minutes_in_c(checkout: Path) -> None:
    """Its function compiles and is judged; it computes nothing."""
    page = PAGES["five_minutes.md"]
    (source, commands) = re.findall(r"^<!-- five minutes in C -->\n```\w+\n(.*?)^```", page, re.M | re.S)
    (checkout / "mine.c").write_text(source)
    paths = {"PATH": f"{checkout / 'bin'}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    ran = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", commands],
        cwd=checkout,
        env={**os.environ, **paths},
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 1, ran.stdout + ran.stderr
    assert ran.stdout.startswith("fail: ")
    assert "nan" in ran.stdout.lower()


def test_the_readme_is_short() -> None:
    assert README.count("\n") <= 150
    assert len(README.split()) <= 1300


def test_blocks_of_every_kind_are_run_and_those_that_are_not_are_there() -> None:
    assert len(_blocks()) >= 8
    for mark in ELSEWHERE:
        assert any(mark in text for text in PAGES.values()), mark


def test_the_excerpt_is_of_the_sixty_lines() -> None:
    (excerpt,) = re.findall(r"<!-- excerpt -->\n```python\n(.*?)```", README, re.S)
    whole = (ROOT / "notebooks" / "tiny.py").read_text(encoding="utf-8")
    for part in re.split(r"^(?=def )", excerpt, flags=re.M)[1:]:
        assert part.strip() in whole
    code = whole.split('"""', 2)[2]
    count = len([line for line in code.splitlines() if line.strip() and not line.strip().startswith("#")])
    assert f"in {count} lines of NumPy" in README


def test_the_table_of_conversions_is_what_convert_does() -> None:
    lines = PAGES["variants.md"].split("<!-- conversions -->")[1].split("<!-- end -->")[0].strip().splitlines()
    head, _, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in lines)
    names = [cell.split()[1] for cell in head[1:]]
    assert [row[0] for row in rows] == names == list(VARIANTS)
    for one, *cells in rows:
        for other, cell in zip(names, cells, strict=True):
            try:
                refdiff.convert.convert(refdiff.DiffLlamaConfig(variant=one), {"layers": []}, other)
            except ValueError as error:
                reason = f"refused: {str(error).partition('exactly: ')[2]}"
                told = f"{one} to {other}: the page has {cell!r}, expected the first words of {reason!r}"
                assert len(cell) > len("refused: "), told
                assert reason.startswith(cell), told
            else:
                assert cell.startswith("exact") == bool(cell) == (one != other), f"{one} to {other}: {cell!r}"


def test_the_table_of_variants_names_the_presets_of_the_oracle() -> None:
    rows = dict(re.findall(r"^\| `(\w+)` \|.*\| (\S+) \|$", PAGES["variants.md"], re.M))
    assert list(rows) == list(VARIANTS)
    assert {name: preset.strip("`") for name, preset in rows.items() if preset != "—"} == VARIANT_PRESETS
    assert set(VARIANT_PRESETS.values()) <= set(PRESETS)


@pytest.mark.parametrize(("size", "documented"), [("mha", "1e-15"), ("gqa2", "1.15"), ("gqa3", "1.26")])
def test_the_eager_file_of_unilm_differs_as_the_variants_page_says(size: str, documented: str) -> None:
    case = unilm.case(f"v1-{size}")
    eager, flash = case.outputs["multihead_diffattn"], case.outputs["multihead_flashdiff_1"]
    share = np.abs(eager - flash).max() / np.abs(flash).max()
    assert share < 1e-15 if size == "mha" else f"{share:.2f}" == documented
    assert re.search(rf"\b{documented} times\b", PAGES["variants.md"])


def test_counts_of_the_oracle_are_those_of_its_selftest() -> None:
    measured = (ROOT / "tests" / "oracle" / "selftest" / "results.md").read_text(encoding="utf-8")
    cells = re.findall(r"^\| rows \|(.*)\|$", measured, re.M)[0].split("|")
    rows, every, own, real, inconclusive = (cell.strip() for cell in cells)
    _, of, share = re.findall(r"([\d,]+) of ([\d,]+) \(([\d.]+ %)\)", rows)[0]
    runs = sum(int(cell.split(" of ")[1].replace(",", "")) for cell in (own, real))
    assert f"of {of} runs of wrong kernels, the oracle finds the mistake in {share};" in README
    assert f"of {runs:,} runs of correct kernels, it fails none and leaves {inconclusive} inconclusive" in README
    assert own.startswith("0 of ")
    assert real.startswith("0 of ")
    line = re.findall(r"^\| refdiff, by rows \|(.*)\|$", PAGES["kernels.md"], re.M)[0]
    assert [cell.strip() for cell in line.split("|")] == [f"{share} of {of}", every, own, real]


def test_the_targets_that_are_missed_are_counted() -> None:
    targets = PAGES["performance.md"].split("### Targets")[1].split("<!-- end -->")[0]
    missed, met = (table.count("\n| ") for table in re.split(r"^\| (?:misses|meets) .*\n", targets, flags=re.M)[1:])
    assert f"{missed} of {missed + met} speed targets are missed" in README
    assert f"\n{missed} of {missed + met} targets are missed.\n" in targets


def test_the_commands_for_a_gpu_are_ones_that_there_are() -> None:
    text = PAGES["cuda.md"]
    commands = [shlex.split(line.split("#")[0]) for line in text.splitlines() if line.startswith("refdiff ")]
    assert [command[1] for command in commands] == ["generate", "bench"]
    assert {build_parser().parse_args(command[1:]).backend for command in commands} == {"cupy"}
    assert (ROOT / "tests" / "gpu_run.sh").exists()
    listed = (ROOT / "tests" / "gpu_reports" / "README.md").read_text(encoding="utf-8")
    reports = [path for path in (ROOT / "tests" / "gpu_reports").glob("*.md") if path.name != "README.md"]
    assert ("Nothing yet" in listed) == ("has run on a GPU yet" in text) == (not reports)
    assert ("never run on a GPU" in README) == (not reports)


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_to_files_that_are_there(page: str) -> None:
    folder = ROOT if page == "README.md" else GUIDES
    targets = [target for target in re.findall(r"\]\(([^)#\s]+)", PAGES[page]) if "://" not in target]
    targets += re.findall(r'(?:src|srcset)="([^"]+)"', PAGES[page])
    assert not [target for target in targets if not (folder / target).resolve().exists()]
