"""`refdiff check`: a file in, an exit status out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from refdiff.cli import main
from refdiff.cli.check import inputs_page
from refdiff.cli.parser import build_parser
from refdiff.oracle.inputs.files import write_arrays
from refdiff.oracle.spec import Spec
from refdiff.oracle.truth import truth
from tests.oracle.example_inputs import draw, small

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


def test_a_wrong_gradient_is_diagnosed_too(tmp_path: Path, capsys: Capture) -> None:
    spec = small("ms_v1")
    x = draw(spec, dtype=np.float32)
    dout = np.ones_like(truth(spec, x).out, dtype=np.float32)
    dk = 2 * truth(spec, x, dout=dout).grads["k"].astype(np.float32)
    file = _file(tmp_path / "mine.safetensors", spec, dout=dout, dk=dk)
    assert main(["check", "--spec", "ms_v1", "--layer", str(spec.layer), "--json", "--diagnose", file]) == 1
    assert "dk is 2 times what it should be" in json.loads(capsys.readouterr().out)["diagnosis"]["notes"]


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
        ([], "FILE or --selftest: got "),
        (["--selftest", "{file}"], "FILE or --selftest: got "),
        (["--spec", "llama", "{file}"], "--spec: got 'llama', expected hf_diffllama, ms_v1"),
        (["--recipe", "int8", "{file}"], "--recipe int8: no recipe is called 'int8'"),
        (["--recipe", "tf23", "{file}"], "did you mean 'tf32'?; or the name of a JSON file"),
        (["--recipe", "{folder}/typo.json", "{file}"], "'storag' is no field of a Recipe, did you mean 'storage'?"),
        (["{folder}/none.safetensors"], "none.safetensors: no such file"),
        (["{folder}/list.json"], "list.json: "),
        (["{folder}/shape.safetensors"], "shape.safetensors: out has shape (2, 5, 6, 12), but must be (2, 6, 5, 12): "),
        (["{folder}/shape.safetensors"], "(query_heads 12, key_heads 4, head_dim 6: read off q, which is taken as (B,"),
        (["{folder}/integers.safetensors"], "integers.safetensors: out has dtype int32, but must be float64"),
        (["--print-spec", "--selftest"], "--print-spec: does not go with --selftest"),
        (["--spec", "{folder}/none.json", "{file}"], "no such file"),
        (["--spec", "{folder}/list.json", "{file}"], "holds no JSON object"),
        (["--spec", "{folder}/broken.json", "{file}"], "is not JSON"),
        (["{folder}/inputs.safetensors"], "nothing to judge"),
        (["{folder}/notes.txt"], "notes.txt: neither .safetensors nor .npz: "),
        (["{folder}/many.safetensors"], "a18, a19 and 28 more, but no q and no x"),
        (["{folder}/outputs.safetensors"], "no q and no x"),
        (["{folder}/layer.safetensors"], "the inputs lack q_proj.weight"),
        (["{folder}/flat.safetensors"], "flat.safetensors: q has shape (3,), but must be (B, H, T, d)"),
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
    (tmp_path / "notes.txt").write_text("some notes")
    write_arrays(tmp_path / "many.safetensors", {f"a{n}": np.ones(1, np.float32) for n in range(40)}, {})
    (tmp_path / "typo.json").write_text('{"storag": "float32"}')
    out = truth(spec, draw(spec)).out
    swapped = {"out": np.ascontiguousarray(np.swapaxes(out, 1, 2))}
    write_arrays(tmp_path / "shape.safetensors", {**draw(spec, dtype=np.float32), **swapped}, {})
    write_arrays(tmp_path / "integers.safetensors", {**draw(spec, dtype=np.float32), "out": out.astype(np.int32)}, {})
    write_arrays(tmp_path / "flat.safetensors", {"q": x, "k": x, "out": x}, {})
    assert main(["check", *(word.format(file=file, folder=tmp_path) for word in words)]) == 2
    assert message in capsys.readouterr().err


def test_what_was_read_off_is_told_only_where_it_matters(tmp_path: Path, capsys: Capture) -> None:
    file = _file(tmp_path / "mine.safetensors", small("hf_diffllama"))
    for word, told in (("pairing=foo", False), ("key_heads=3", True)):
        assert main(["check", "--set", word, file]) == 2
        assert ("read off" in capsys.readouterr().err) == told


def test_a_failure_says_how_to_name_the_mistake(tmp_path: Path, capsys: Capture) -> None:
    file = _file(tmp_path / "mine.safetensors", small("ms_v1"))
    hint = "\n--diagnose names the mistake\n"
    for words, told in ((["--layer", "3"], True), (["--layer", "3", "--json"], False), (["--layer", "2"], False)):
        status = main(["check", "--spec", "ms_v1", *words, file])
        assert (status, capsys.readouterr().out.endswith(hint)) == (1 if "3" in words else 0, told)


@pytest.mark.parametrize("name", ["hf_diffllama", "ms_v1", "gda"])
def test_a_preset_is_printed_without_a_file(name: str, capsys: Capture) -> None:
    assert main(["check", "--print-spec", "--spec", name, "--set", "window=7", "--layer", "3"]) == 0
    fields = json.loads(capsys.readouterr().out)
    whole = small(name, window=7, layer=3).to_dict()
    dimensions = {"query_heads", "key_heads", "head_dim"}
    assert fields == {field: value for field, value in whole.items() if field not in dimensions}


def test_the_help_explains_the_numbers(capsys: Capture) -> None:
    with pytest.raises(SystemExit):
        main(["check", "--help"])
    lines = capsys.readouterr().out.splitlines()
    for name in ("bound", "row", "bulk", "element", "slope", "factor"):
        assert sum(line.startswith(f"{name}: ") for line in lines) == 1


def test_what_is_no_pass_is_1_and_trouble_is_2(tmp_path: Path, capsys: Capture) -> None:
    spec = small("hf_diffllama")
    x = draw(spec, dtype=np.float32)
    nan = np.full_like(x["q"], np.nan)
    out, lse1 = (np.full(shape, np.nan, np.float32) for shape in ((2, 6, 5, 12), (2, 6, 5)))
    file = _file(tmp_path / "mine.safetensors", spec, q=nan, out=out, lse1=lse1)
    assert main(["check", file]) == 1
    said = capsys.readouterr().out
    assert "inconclusive" in said
    assert "NaN or infinities in the inputs: q has 720 of 720" in said
    assert main(["check", file + ".gone"]) == 2
    with pytest.raises(SystemExit, match="2"):
        main(["check", "--no-such-flag", file])


def test_a_layer_with_a_preset_and_a_changed_field(tmp_path: Path, capsys: Capture) -> None:
    spec = small("ms_v1", window=3)
    x = draw(spec, layer=True, dtype=np.float32)
    file = tmp_path / "layer.safetensors"
    write_arrays(file, {**x, "out": truth(spec, x).out.astype(np.float32)}, {})
    words = ["check", "--spec", "ms_v1", "--layer", "2", str(file)]
    assert main([*words, "--set", "window=3"]) == 0
    assert main(words) == 1
    capsys.readouterr()
    assert main([*words, "--set", "window=3", "--print-spec"]) == 0
    text = capsys.readouterr().out
    assert Spec.of(json.loads(text)) == spec
    (tmp_path / "spec.json").write_text(text)
    assert main(["check", "--spec", str(tmp_path / "spec.json"), str(file)]) == 0


@pytest.mark.slow
def test_verdicts_and_the_page_of_inputs_fit_80_columns(tmp_path: Path, capsys: Capture) -> None:
    spec = small("hf_diffllama")
    out = truth(spec, draw(spec, dtype=np.float32)).out.astype(np.float32)
    file = _file(tmp_path / "mine.safetensors", spec, out=2 * out, lse2=out[..., 0].copy())
    assert main(["check", "--diagnose", "--layer", "2", file]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert "diagnosis: " in "\n".join(lines)
    assert max(len(line) for line in lines if "https://" not in line) <= 80
    assert main(["check", "--inputs"]) == 0
    page = capsys.readouterr().out
    assert page == inputs_page() + "\n"
    assert max(map(len, page.splitlines())) <= 80
    assert all(name in page for name in ("lambda_logits", "block_table", "o_proj.weight", "dlambda_q1"))


@pytest.fixture
def tables(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """A run of the selftest that takes no time; what it was asked for."""
    from tests.oracle import selftest

    asked = []

    def run(seeds: range, *, done: Any, progress: Any, **options: Any) -> Any:
        asked.append({"seeds": [*seeds], **options})
        progress(1, 16)
        done("seed 1")
        table = selftest.Table()
        killed = 100 if options["jobs"] < 3 else 97
        table.counts["float16", "cancellation", "lse", "rows"] = selftest.Count(
            mutants=120, identifiable=100, killed=killed, killed_identifiable=killed, own=5
        )
        return table

    monkeypatch.setattr(selftest, "selftest", run)
    return asked


def test_selftest(tables: list[dict[str, Any]], capsys: Capture) -> None:
    assert main(["check", "--selftest", "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["rows"][0]["killed_identifiable"] == 100
    assert err == "each seed has 16 cases of recipe and profile, and takes some minutes\nseed 1 done\n"
    assert len(tables[0].pop("seeds")) == 1
    assert tables[0] == {"kernels": None, "jobs": 1, "keep": None}
    assert main(["check", "--selftest"]) == 0
    assert "100.0 % of 100" in capsys.readouterr().out
    words = ["--seeds", "3", "--jobs", "3", "--state", "folder", "--kernels", "a.b:C", "--markdown"]
    assert main(["check", "--selftest", *words]) == 1, "it killed 97 %"
    assert "| rows | 97 of 100 (97.0 %) |" in capsys.readouterr().out
    assert len(tables[2].pop("seeds")) == 3
    assert tables[2] == {"kernels": "a.b:C", "jobs": 3, "keep": "folder"}


@pytest.mark.usefixtures("tables")
def test_the_selftest_shows_progress(
    capsys: Capture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("refdiff.cli.check.REPORTED_EVERY", 0)
    assert main(["check", "--selftest"]) == 0
    out, err = capsys.readouterr()
    assert err.splitlines()[1:] == ["1 of 16 cases", "seed 1 done"]
    assert out.splitlines()[-3:] == [
        "passed, by the rule `rows`",
        "  killed: 100.0 % of 100 identifiable mutants; expected 98 % or more",
        "  refused: 0 of 5 correct kernels; expected 0",
    ]
    assert main(["check", "--selftest", "-q"]) == 0
    assert capsys.readouterr().err == ""
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    assert main(["check", "--selftest"]) == 0
    assert "1/16" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["--json", "--markdown"], ["--kernels", "nowhere_at_all:KERNELS"]])
def test_selftest_as_nobody_can_have_it(words: list[str], capsys: Capture) -> None:
    assert main(["check", "--selftest", *words]) == 2
    assert words[-1] in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "flags"),
    [
        (["--seeds", "3", "--jobs", "2"], "--seeds, --jobs"),
        (["--state", "folder"], "--state"),
        (["--kernels", "a:B", "--markdown"], "--kernels, --markdown"),
    ],
)
def test_options_of_the_selftest_need_it(words: list[str], flags: str, capsys: Capture) -> None:
    assert main(["check", *words, "mine.npz"]) == 2
    assert f"{flags}: no effect without --selftest; add that, or leave it out" in capsys.readouterr().err


def test_defaults() -> None:
    args = build_parser().parse_args(["check", "mine.npz"])
    assert (args.file, args.spec, args.layer, args.recipe) == ("mine.npz", "hf_diffllama", None, "auto")
    assert (args.selftest, args.seeds, args.json, args.diagnose, args.debug) == (False, 1, False, False, False)
    assert (args.set, args.inputs, args.print_spec) == ([], False, False)
    assert build_parser().parse_args(["check", "--set", "a=1", "--set", "b=2"]).set == ["a=1", "b=2"]


@pytest.mark.parametrize("words", [["--layer", "-1"], ["--seeds", "0"], ["--layer", "one"]])
def test_numbers_out_of_range(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["check", "mine.npz", *words])
    assert words[0] in capsys.readouterr().err
