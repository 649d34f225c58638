"""`refdiff check`: a file in, an exit status out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from refdiff.cli import main
from refdiff.cli.check import parts
from refdiff.oracle.files import write_arrays
from refdiff.oracle.spec import Spec
from refdiff.oracle.truth import truth
from tests.oracle.inputs import draw, small

Capture = pytest.CaptureFixture[str]


def _file(path: Path, spec: Spec, dtype: Any = np.float32, **changes: Any) -> str:
    x = draw(spec, dtype=dtype)
    found = truth(spec, x)
    out = {"out": found.out.astype(dtype), "lse1": found.lse1.astype(np.float32)}
    write_arrays(path, {**x, **out, **changes}, {})
    return str(path)


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16, np.float16])
def test_a_right_output_passes(dtype: Any, tmp_path: Path, capsys: Capture) -> None:
    spec = small("hf_diffllama")
    file = _file(tmp_path / "mine.safetensors", spec, dtype)
    assert main(["check", "--layer", "2", file]) == 0
    text = capsys.readouterr().out
    assert text.startswith(f"pass, judged as {np.dtype(dtype).name}")
    assert "lse1         pass" in text


def test_another_layer_fails_and_the_mistake_is_named(tmp_path: Path, capsys: Capture) -> None:
    file = _file(tmp_path / "mine.safetensors", small("ms_v1"))
    assert main(["check", "--spec", "ms_v1", "--layer", "3", "--json", "--diagnose", file]) == 1
    report = json.loads(capsys.readouterr().out)
    assert report["status"] == "fail"
    assert report["spec"]["layer"] == 3
    assert report["tensors"]["out"]["status"] == "fail"
    assert report["tensors"]["lse1"]["status"] == "pass"
    assert report["diagnosis"]["status"] in ("unique", "ambiguous")


def test_gradients_npz_and_json_files(tmp_path: Path, capsys: Capture) -> None:
    spec = small("diff_v2", rope="none")
    x = draw(spec, dtype=np.float32)
    dout = np.ones((2, spec.heads, 5, spec.out_dim), dtype=np.float32)
    grads = truth(spec, x, dout=dout).grads
    np.savez(tmp_path / "mine.npz", **x, dout=dout, dv=grads["v"], dlambda_logits=grads["lambda_logits"])
    (tmp_path / "spec.json").write_text(json.dumps(spec.to_dict()))
    (tmp_path / "recipe.json").write_text(json.dumps({"storage": "float32", "matmul": "tf32"}))
    words = ["check", "--spec", str(tmp_path / "spec.json"), "--recipe", str(tmp_path / "recipe.json")]
    assert main([*words, str(tmp_path / "mine.npz")]) == 0
    assert "judged as float32 matmul=tf32" in capsys.readouterr().out
    np.savez(tmp_path / "mine.npz", **x, dout=dout, dv=2 * grads["v"])
    assert main([*words, str(tmp_path / "mine.npz")]) == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "give a FILE, or --selftest"),
        (["--selftest", "{file}"], "give a FILE, or --selftest"),
        (["--spec", "llama", "{file}"], "--spec llama: there are hf_diffllama"),
        (["--recipe", "int8", "{file}"], "--recipe int8: no recipe is called 'int8'"),
        (["--spec", "{folder}/none.json", "{file}"], "No such file"),
        (["--spec", "{folder}/list.json", "{file}"], "holds no JSON object"),
        (["--spec", "{folder}/broken.json", "{file}"], "is no JSON"),
        (["{folder}/inputs.safetensors"], "nothing to judge"),
        (["{folder}/outputs.safetensors"], "no q and no x"),
        (["{folder}/layer.safetensors"], "cannot be read off its arrays"),
        (["{folder}/flat.safetensors"], "q has shape (3,), but must be (B, H, T, d)"),
    ],
)
def test_wrong_usage(words: list[str], message: str, tmp_path: Path, capsys: Capture) -> None:
    spec = small("hf_diffllama")
    file = _file(tmp_path / "mine.safetensors", spec)
    (tmp_path / "list.json").write_text("[]")
    (tmp_path / "broken.json").write_text("{")
    x = np.ones(3, dtype=np.float32)
    write_arrays(tmp_path / "inputs.safetensors", draw(spec), {})
    write_arrays(tmp_path / "outputs.safetensors", {"out": x}, {})
    write_arrays(tmp_path / "layer.safetensors", {"x": x, "out": x}, {})
    write_arrays(tmp_path / "flat.safetensors", {"q": x, "k": x, "out": x}, {})
    assert main(["check", *(word.format(file=file, folder=tmp_path) for word in words)]) == 2
    assert message in capsys.readouterr().err


def test_lambda_is_an_input_or_an_output() -> None:
    given, inputs, dout = parts({"q": 1, "lambda_full": 2, "out": 3, "dout": 4, "dq": 5})
    assert (given, inputs, dout) == ({"out": 3, "dq": 5}, {"q": 1, "lambda_full": 2}, 4)
    given, _, _ = parts({"q": 1, "lambda_full": 2, "lambda_q1": 3})
    assert given == {"lambda_full": 2}


@pytest.fixture
def tables(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """A run of the selftest that takes no time; what it was asked for."""
    from refdiff.oracle import selftest

    asked = []

    def run(seeds: range, *, done: Any, **options: Any) -> Any:
        asked.append({"seeds": [*seeds], **options})
        done("seed 1")
        table = selftest.Table()
        killed = 100 if options["jobs"] < 3 else 98
        table.counts["float16", "cancel", "lse", "rows"] = selftest.Count(
            mutants=120, identifiable=100, killed=killed, killed_identifiable=killed, own=5
        )
        return table

    monkeypatch.setattr(selftest, "selftest", run)
    return asked


def test_selftest(tables: list[dict[str, Any]], capsys: Capture) -> None:
    assert main(["check", "--selftest", "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["rows"][0]["killed_identifiable"] == 100
    assert "seed 1 done" in err
    assert len(tables[0].pop("seeds")) == 1
    assert tables[0] == {"kernels": None, "jobs": 1, "keep": None}
    assert main(["check", "--selftest"]) == 0
    assert "100.0 % of 100" in capsys.readouterr().out
    words = ["--seeds", "3", "--jobs", "3", "--keep", "folder", "--kernels", "a.b:C", "--markdown"]
    assert main(["check", "--selftest", *words]) == 1, "it killed 98 %"
    assert "| rows | 98 of 100 (98.0 %) |" in capsys.readouterr().out
    assert len(tables[2].pop("seeds")) == 3
    assert tables[2] == {"kernels": "a.b:C", "jobs": 3, "keep": "folder"}


@pytest.mark.parametrize("words", [["--json", "--markdown"], ["--kernels", "nowhere_at_all:KERNELS"]])
def test_selftest_as_nobody_can_have_it(words: list[str], capsys: Capture) -> None:
    assert main(["check", "--selftest", *words]) == 2
    assert words[-1] in capsys.readouterr().err
