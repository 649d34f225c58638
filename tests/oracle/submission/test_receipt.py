"""A receipt is judged again without the kernel; what was changed in it, or beside it, fails."""

from __future__ import annotations

import base64
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from refdiff.oracle import Recipe, Spec
from refdiff.oracle.submission import judge_file, receipt
from refdiff.oracle.submission.judging import JudgeReport
from refdiff.oracle.submission.process import KernelProcess
from refdiff.oracle.submission.receipt import verify_receipt, write_receipt

KERNELS = Path(__file__).parent / "kernels"
SPEC = Spec.preset("hf_diffllama", query_heads=4, key_heads=2, head_dim=4, layer=2)
ASKED = {"function": "kernel", "profiles": ["natural"], "sizes": [[1, 3, 5]]}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a kernel and its receipt, as of a machine with a GPU."""
    folder = tmp_path_factory.mktemp("receipt")
    kernel = Path(shutil.copy(KERNELS / "honest.py", folder))
    text = kernel.read_text()
    kernel.write_text(text.replace("\nimport", "\nimport helper.tiles\nimport", 1))
    (folder / "helper").mkdir()
    (folder / "helper" / "__init__.py").touch()
    (folder / "helper" / "tiles.py").write_text("from . import sizes\n")
    (folder / "helper" / "sizes.py").write_text("TILE = 16\n")
    (folder / "unused.py").write_text("def\n")
    report = judge_file(kernel, SPEC, recipe="float32", profiles=["natural"], sizes=[(1, 3, 5)], seed=9000)
    assert report
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(receipt, "gpus", lambda: ["NVIDIA H100, 570.1"])
        write_receipt(folder / "receipt.json", report)
    return folder


def _verify(folder: Path, *, recipe: str = "float32", **asked: Any) -> tuple[JudgeReport, dict[str, Any]]:
    return verify_receipt(folder / "receipt.json", folder / "honest.py", SPEC, Recipe(recipe), {**ASKED, **asked})


def test_a_receipt_is_judged_without_the_kernel(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(KernelProcess, "start", None)
    report, machine = _verify(made)
    assert report, report
    assert (report.compared, report.seed, report.unjudged) == (10, 9000, 0)
    files = json.loads((made / "receipt.json").read_text())["files_sha256"]
    assert sorted(files) == ["helper/__init__.py", "helper/sizes.py", "helper/tiles.py", "kernel"]
    assert machine["gpus"] == ["NVIDIA H100, 570.1"]
    assert machine["numpy"] == np.__version__


def _change_kernel(folder: Path, case: dict[str, Any], told: dict[str, Any]) -> None:
    with (folder / "honest.py").open("a") as file:
        file.write("\n# mended\n")


def _change_import(folder: Path, case: dict[str, Any], told: dict[str, Any]) -> None:
    (folder / "helper" / "sizes.py").write_text("TILE = 32\n")


def _change_output(folder: Path, case: dict[str, Any], told: dict[str, Any]) -> None:
    (entry,) = case["outputs"][2]
    entry[3] = base64.b64encode(np.full(entry[2], 3, entry[1]).tobytes()).decode()


def _change_output_and_hash(folder: Path, case: dict[str, Any], told: dict[str, Any]) -> None:
    _change_output(folder, case, told)
    named = [{n: np.frombuffer(base64.b64decode(x), t).reshape(s) for n, t, s, x in one} for one in case["outputs"]]
    case["outputs_sha256"] = receipt._digest(named)


CHANGES: list[tuple[Callable[[Path, dict[str, Any], dict[str, Any]], Any], str]] = [
    (_change_kernel, "honest.py is not the file of the receipt: its SHA-256 differs"),
    (_change_import, "helper/sizes.py is not the file of the receipt: its SHA-256 differs"),
    (
        lambda folder, case, told: (folder / "helper" / "tiles.py").write_text("def"),
        "helper/sizes.py is not the file of",
    ),
    (_change_output, "natural-0-2x16x24-float32-9000: its outputs have another SHA-256 than the receipt says"),
    (_change_output_and_hash, " alone: fail, judged as float32"),
    (lambda folder, case, told: case.update(inputs_sha256="0"), "its inputs, drawn here, have another SHA-256"),
    (lambda folder, case, told: case.update(problem="the kernel raised"), "9000: the kernel raised"),
    (lambda folder, case, told: case["outputs"][0][0].__setitem__(1, "object"), "the type of an output is not one of"),
    (lambda folder, case, told: case["outputs"][0][0].__setitem__(2, [-7, 9]), "natural-0-2x16x24-float32-9000: "),
    (lambda folder, case, told: case["outputs"][0][0].__setitem__(2, [10**30]), "natural-0-2x16x24-float32-9000: "),
    (lambda folder, case, told: case.pop("declined"), "9000: the receipt lacks 'declined'"),
    (lambda folder, case, told: told["cases"].clear(), "9000: the receipt lacks 'natural-0-2x16x24-float32-9000'"),
    (lambda folder, case, told: told["report"].update(reasons=["ended early"]), "\nended early"),
]


@pytest.mark.parametrize(("change", "said"), CHANGES)
def test_what_was_changed_fails(change: Callable[..., Any], said: str, made: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(made, tmp_path / "copy"))
    told = json.loads((folder / "receipt.json").read_text())
    change(folder, told["cases"]["natural-0-2x16x24-float32-9000"], told)
    (folder / "receipt.json").write_text(json.dumps(told))
    report, _ = _verify(folder)
    assert report.status == "fail"
    assert said in str(report)


def test_a_receipt_of_something_else_is_an_error(made: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"the receipt is of profiles \['natural'\], expected \['tiles'\]"):
        _verify(made, profiles=["tiles"])
    with pytest.raises(ValueError, match=r"the receipt is of recipe .*float32.*, expected .*bfloat16"):
        _verify(made, recipe="bfloat16")
    with pytest.raises(OSError, match=r"receipt\.json: no such file"):
        _verify(tmp_path)
    for text in ("[]", "{}", "{", '{"report": 3}', "[" * 10**5):
        (tmp_path / "receipt.json").write_text(text)
        with pytest.raises(ValueError, match="no receipt of refdiff judge"):
            _verify(tmp_path)
