"""A receipt is judged again without the kernel; what was changed in it fails; the kernel's side of the judge."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from refdiff.oracle import Recipe, Spec
from refdiff.oracle.inputs import signature
from refdiff.oracle.inputs.arrays import read_arrays, write_arrays
from refdiff.oracle.submission import child, judge_file, receipt
from refdiff.oracle.submission.judging import JudgeReport
from refdiff.oracle.submission.process import KernelProcess
from refdiff.oracle.submission.receipt import verify_receipt, write_receipt

RECEIPT = "receipt.safetensors"
KERNELS = Path(__file__).parent / "kernels"
SPEC = Spec.preset("hf_diffllama", query_heads=4, key_heads=2, head_dim=4, layer=2)
ASKED = {"function": "kernel", "profiles": ["natural"], "sizes": [[1, 3, 5]]}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a kernel and its receipt, as of a machine with a GPU."""
    folder = tmp_path_factory.mktemp("receipt")
    kernel = Path(shutil.copy(KERNELS / "honest.py", folder))
    text = kernel.read_text()
    kernel.write_text(text.replace("\nimport", "\nimport sizes\nimport", 1))
    (folder / "sizes.py").write_text("TILE = 16\n")
    report = judge_file(kernel, SPEC, recipe="float32", profiles=["natural"], sizes=[(1, 3, 5)], seed=9000)
    assert report
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(receipt, "gpus", lambda: ["NVIDIA H100, 570.1"])
        write_receipt(folder / RECEIPT, report)
    return folder


def _verify(folder: Path, *, recipe: str = "float32", **asked: Any) -> tuple[JudgeReport, dict[str, Any]]:
    return verify_receipt(folder / RECEIPT, folder / "honest.py", SPEC, Recipe(recipe), {**ASKED, **asked})


def test_a_receipt_is_judged_without_the_kernel(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(KernelProcess, "start", None)
    report, machine = _verify(made)
    assert report, report
    assert (report.compared, report.seed, report.unjudged) == (7, 9000, 0)
    assert sorted(json.loads(read_arrays(made / RECEIPT)[1]["receipt"])["files_sha256"]) == ["kernel", "sizes.py"]
    assert machine["gpus"] == ["NVIDIA H100, 570.1"]
    assert machine["numpy"] == np.__version__


CASE = "natural-0-2x16x24-float32-9000"
Change = Callable[[Path, dict[str, Any], dict[str, Any]], Any]


def _write(name: str, text: str) -> Change:
    return lambda folder, arrays, told: (folder / name).write_text(text)


def _change_case(**fields: Any) -> Change:
    return lambda folder, arrays, told: told["cases"][CASE].update(fields)


def _change_output(change: Callable[[np.ndarray], np.ndarray]) -> Change:
    return lambda folder, arrays, told: arrays.update({f"{CASE}/2/out": change(arrays[f"{CASE}/2/out"])})


CHANGES: list[tuple[Change, str]] = [
    (_write("honest.py", "# mended"), "honest.py is not the file of the receipt: its SHA-256 differs"),
    (_write("sizes.py", "TILE = 32"), "sizes.py is not the file of the receipt: its SHA-256 differs"),
    (lambda folder, arrays, told: (folder / "sizes.py").unlink(), "sizes.py is not the file of the receipt"),
    (_change_output(lambda x: np.full_like(x, 3)), " alone: fail, judged as float32"),
    (_change_output(lambda x: x[:, :1]), "cannot be judged: out: got shape"),
    (_change_output(lambda x: x.astype(np.int32)), "out: got dtype int32, expected float64"),
    (_change_case(inputs_sha256="0"), f"{CASE}: its inputs, drawn here, have another SHA-256"),
    (_change_case(problem="the kernel raised"), "9000: the kernel raised"),
    (lambda folder, arrays, told: told["cases"][CASE].pop("declined"), f"{CASE}: the receipt lacks it"),
    (lambda folder, arrays, told: told["cases"].clear(), f"{CASE}: the receipt lacks it"),
    (lambda folder, arrays, told: told.update(cases=3), f"{CASE}: the receipt lacks it"),
    (lambda folder, arrays, told: told["report"].update(reasons=["ended early"]), "\nended early"),
]


@pytest.mark.parametrize(("change", "said"), CHANGES)
def test_what_was_changed_fails(change: Change, said: str, made: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(made, tmp_path / "copy"))
    arrays, header = read_arrays(folder / RECEIPT)
    told = json.loads(header["receipt"])
    change(folder, arrays, told)
    write_arrays(folder / RECEIPT, arrays, {"receipt": json.dumps(told)})
    report, _ = _verify(folder)
    assert report.status == "fail"
    assert said in str(report)


def test_a_receipt_of_something_else_is_an_error(made: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"the receipt is of profiles \['natural'\], expected \['tiles'\]"):
        _verify(made, profiles=["tiles"])
    with pytest.raises(ValueError, match=r"the receipt is of recipe .*float32.*, expected .*bfloat16"):
        _verify(made, recipe="bfloat16")
    with pytest.raises(OSError, match=r"receipt\.safetensors: no such file"):
        _verify(tmp_path)
    for text in ("[]", "{}", "{", '{"report": 3}', "[" * 10**5):
        write_arrays(tmp_path / RECEIPT, {}, {"receipt": text})
        with pytest.raises(ValueError, match="no receipt of refdiff judge"):
            _verify(tmp_path)


# The kernel's side of the judge, called here: what it refuses, and what it is given


def test_imports_of_refdiff_are_refused() -> None:
    child.refuse_refdiff("import", ("refdifference", None, None, None, None))
    child.refuse_refdiff("os.fork", ())
    with pytest.raises(ImportError, match="refdiff cannot be imported"):
        child.refuse_refdiff("import", ("refdiff.layers", None, None, None, None))


def test_a_file_without_its_function(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setitem(sys.modules, "submission", None)
    config = {"signature": signature.__file__, "kernel": str(KERNELS / "honest.py"), "function": "absent"}
    with pytest.raises(child.UnusableError, match="the file has no function 'absent'"):
        child.load(config)
    with pytest.raises(child.UnusableError, match=r"must end in \.py, \.so or \.dylib"):
        child.load({**config, "kernel": str(tmp_path / "kernel.txt")})


def test_equal_specs_have_one_hash() -> None:
    """JAX looks a static argument up by it."""
    first, second = ({"layer": 2, "rope_parameters": {"factor": 4}}, {"rope_parameters": {"factor": 4}, "layer": 2})
    assert {child.Fields(**first): 1}[child.Fields(**second)]
    assert child.Fields(layer=0) != child.Fields(layer=1)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_arrays_of_torch_are_read_where_they_are(dtype: str) -> None:
    torch = pytest.importorskip("torch")
    x = torch.arange(6, dtype=getattr(torch, dtype), requires_grad=True)
    found = child.on_host(x.reshape(2, 3).T)
    assert (found.dtype.name, found.astype(float).tolist()) == (dtype, [[0, 3], [1, 4], [2, 5]])
    child.overwrite(x)
    assert np.isnan(found.astype(float)).all()
