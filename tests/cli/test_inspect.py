"""`refdiff inspect`: what it says of a checkpoint, and that it reads next to nothing of it."""

from __future__ import annotations

import json
import math
import os
import shutil
import warnings
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import refdiff
from refdiff.cli import main
from refdiff.cli.inspect import inspect
from tests.model.models import small_model

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def folder(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    return shutil.copytree(tiny_checkpoint, tmp_path / "model")


def test_the_report_as_json(tiny_checkpoint: Path, capsys: Capture) -> None:
    assert main(["inspect", "--json", str(tiny_checkpoint)]) == 0
    report = json.loads(capsys.readouterr().out)
    stored = load_file(tiny_checkpoint / "model.safetensors")
    assert report["checkpoint"] == str(tiny_checkpoint)
    assert report["architecture"] == "DiffLlamaForCausalLM"
    assert report["parameters"] == sum(a.size for a in stored.values())
    assert report["dtype"] == "float32"
    assert report["config"]["hidden_size"] == 24
    assert report["problems"] == []
    assert {name: (t["shape"], t["bytes"]) for name, t in report["tensors"].items()} == {
        name: (list(a.shape), a.nbytes) for name, a in stored.items()
    }
    files = {file["name"]: file for file in report["files"]}
    assert files["model.safetensors"]["tensors"] == len(stored)
    assert files["model.safetensors"]["bytes"] == (tiny_checkpoint / "model.safetensors").stat().st_size
    assert files["tokenizer.json"]["tensors"] == 0


def test_lambdas_are_those_of_the_model(tiny_checkpoint: Path) -> None:
    report = inspect(str(tiny_checkpoint))
    model = refdiff.DiffLlamaForCausalLM.from_pretrained(tiny_checkpoint, dtype="float64")
    expected = [float(x) for x in model([[0, 5]], output_attentions=True).lambdas]
    assert [entry["layer"] for entry in report["lambdas"]] == [0, 1]
    np.testing.assert_allclose([entry["lambda"] for entry in report["lambdas"]], expected, rtol=1e-12)
    starts = [0.8 - 0.6 * math.exp(-0.3 * layer) for layer in (0, 1)]
    np.testing.assert_allclose([entry["lambda_init"] for entry in report["lambdas"]], starts, rtol=1e-15)


@pytest.mark.parametrize(("dtype", "mapped"), [("float32", True), ("bfloat16", False), ("float16", False)])
def test_memory(dtype: str, mapped: bool, tmp_path: Path, capsys: Capture) -> None:
    config = refdiff.DiffLlamaConfig(
        vocab_size=11, hidden_size=8, intermediate_size=6, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, head_dim=4, max_position_embeddings=100,
    )  # fmt: skip
    model = refdiff.DiffLlamaForCausalLM.from_config(config)
    model.save_pretrained(tmp_path, dtype=dtype)
    report = inspect(str(tmp_path))
    memory = report["memory"]
    assert report["dtype"] == dtype
    assert memory["weights"] == 4 * model.num_parameters()
    assert memory["stored"] == (4 if mapped else 2) * model.num_parameters()
    assert memory["mapped"] == (memory["stored"] if mapped else 0)
    assert memory["kv_cache_per_1000_tokens"] == 1000 * 3 * 2 * 2 * 4 * 4
    assert main(["inspect", str(tmp_path)]) == 0
    assert ("mapped from the files" if mapped else "expanded when loaded") in capsys.readouterr().out


def test_the_page_fits_80_columns(tiny_checkpoint: Path, capsys: Capture) -> None:
    assert main(["inspect", str(tiny_checkpoint)]) == 0
    out = capsys.readouterr().out
    lines = out.splitlines()
    assert max(len(line) for line in lines[1:]) < 80
    assert out.count("self_attn.q_proj.weight") == 1  # once for all layers
    assert "model.layers.0 to 1, each" in out
    assert "32 × 24" in out
    assert "hidden_size 24" in out
    assert "λ by layer" in out


def test_layers_that_differ_are_shown_apart(folder: Path, capsys: Capture) -> None:
    stored = load_file(folder / "model.safetensors")
    stored["model.layers.1.mlp.up_proj.weight"] = stored["model.layers.1.mlp.up_proj.weight"].astype(np.float16)
    save_file(stored, folder / "model.safetensors")
    assert main(["inspect", str(folder)]) == 0
    out = capsys.readouterr().out
    assert "model.layers.0\n" in out
    assert "model.layers.1\n" in out


def test_what_does_not_belong_together_is_listed_with_status_1(folder: Path, capsys: Capture) -> None:
    stored = load_file(folder / "model.safetensors")
    del stored["model.norm.weight"]
    stored["model.layers.0.self_attn.q_proj.weight"] = np.zeros((3, 24), dtype=np.float32)
    stored["model.layers.7.extra"] = np.zeros(3, dtype=np.float32)
    stored["model.layers.1.self_attn.lambda_q1"] = np.zeros(5, dtype=np.float32)
    save_file(stored, folder / "model.safetensors")
    assert main(["inspect", str(folder)]) == 1
    out = capsys.readouterr().out
    assert "model.norm.weight: missing" in out
    assert "model.layers.0.self_attn.q_proj.weight: shape (3, 24), but config.json makes it (32, 24)" in out
    assert "model.layers.7.extra: no parameter of DiffLlamaForCausalLM" in out
    assert [entry["layer"] for entry in inspect(str(folder))["lambdas"]] == [0]  # layer 1 has four of unequal length


def test_labels_and_long_fields_are_shown(folder: Path, capsys: Capture) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["id2label"] = {str(i): f"a label with a long name, number {i}" for i in range(6)}
    config["label2id"] = {name: int(i) for i, name in config["id2label"].items()}
    (folder / "config.json").write_text(json.dumps(config))
    assert main(["inspect", str(folder)]) == 0
    out = capsys.readouterr().out
    assert "a label with a long name, number 5" in " ".join(out.split())
    assert max(len(line) for line in out.splitlines()[1:]) < 80


def test_an_unnamed_architecture_is_taken_for_a_language_model(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    del config["architectures"]
    (folder / "config.json").write_text(json.dumps(config))
    assert inspect(str(folder))["architecture"] == "DiffLlamaForCausalLM"


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_broken_checkpoint_is_one_line(name: str, folder: Path, capsys: Capture) -> None:
    (folder / name).write_bytes(b"garbage" * 10)
    assert main(["inspect", str(folder)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("refdiff inspect: error: ")
    assert name in err
    assert err.count("\n") == 1


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="files with holes are made differently there")
def test_the_weights_are_not_read(tmp_path: Path) -> None:
    """A checkpoint of 1.24 billion parameters that is one large hole: its size is read, its content is not."""
    config = refdiff.DiffLlamaConfig(vocab_size=128256, num_key_value_heads=8, tie_word_embeddings=True)
    config.save_pretrained(tmp_path)
    entries: dict[str, Any] = {}
    at = 0
    from refdiff.model.weights import parameter_shapes

    for name, shape in parameter_shapes(config, "DiffLlamaForCausalLM").items():
        entries[name] = {"dtype": "F32", "shape": shape, "data_offsets": [at, at + 4 * math.prod(shape)]}
        at += 4 * math.prod(shape)
    header = json.dumps(entries).encode()
    with (tmp_path / "model.safetensors").open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + at)
    report = inspect(str(tmp_path))
    assert report["parameters"] == 1_235_818_496
    assert report["memory"]["mapped"] == at
    assert len(report["lambdas"]) == 16


def test_a_repo_is_seen_in_outline(tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    seen: dict[str, Any] = {}

    def outline(repo: str, **options: Any) -> AbstractContextManager[Path]:
        seen.update(options, repo=repo)

        @contextmanager
        def given() -> Any:
            yield tiny_checkpoint

        return given()

    monkeypatch.setattr("refdiff.hub.outline", outline)
    assert main(["inspect", "--offline", "someone/somemodel"]) == 0
    assert capsys.readouterr().out.startswith("someone/somemodel\n")
    assert seen["repo"] == "someone/somemodel"
    assert seen["local_files_only"] is True
    assert {"config.json", "tokenizer.json", "model.safetensors"} <= set(seen["files"])


@pytest.mark.parametrize(("wiring", "shown"), [("hf", False), ("paper", True), ("v2", True), ("none", True)])
def test_a_model_that_is_no_diffllama_is_shown_as_what_it_is(
    wiring: str, shown: bool, tmp_path: Path, capsys: Capture
) -> None:
    model = small_model(wiring=wiring)
    model.save_pretrained(tmp_path)
    assert main(["inspect", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert ("model_type" in out) == shown
    assert f"{model.num_parameters():,} parameters" in out
    assert ("λ by layer" in out) == (wiring in ("hf", "paper"))


def test_names_that_could_drive_a_terminal_or_are_no_text(folder: Path, capsys: Capture) -> None:
    tensors = load_file(folder / "model.safetensors")
    layer = "9" * 400
    more = {
        "\x1b[2J\u202e": np.ones(1, np.float32),
        f"model.layers.{layer}.self_attn.lambda_q1": np.ones(3, np.float32),
    }
    save_file({**tensors, **more}, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "\x1b]0;\u202e": "\x9b\ud800", "long": "x" * 10**6}))
    for name in (b"a\xff", b"b\x1b[2Jc\nd"):
        Path(os.fsdecode(os.fsencode(folder) + b"/" + name)).touch()
    for arguments in ([], ["--json"]):
        with warnings.catch_warnings():
            warnings.simplefilter("default")  # the unknown fields are named in one, which a test would end with
            assert main(["inspect", *arguments, str(folder)]) == 1
        said = "".join(capsys.readouterr())
        assert all(line.isprintable() for line in said.splitlines())
        assert "\u202e" not in said
        assert "99999" in said
        said.encode()
        assert len(said) < (12_000 if not arguments else 2_000_000)
        if not arguments:  # escaped names keep the columns
            lines = said.splitlines()
            first = next(i for i, line in enumerate(lines) if line.startswith("files "))
            assert {len(line) for line in lines[first : lines.index("", first)]} == {len(lines[first])}


def test_lambda_vectors_of_gigabytes_are_not_read(folder: Path, capsys: Capture) -> None:
    tensors = load_file(folder / "model.safetensors")
    for name in tensors:
        if name.endswith(("lambda_q1", "lambda_k1", "lambda_q2", "lambda_k2")):
            tensors[name] = np.zeros(300_000, np.float32)
    save_file(tensors, folder / "model.safetensors")
    assert main(["inspect", "--json", str(folder)]) == 1
    assert json.loads(capsys.readouterr().out)["lambdas"] == []


def test_columns_of_the_longest_name_are_in_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", "bundled"]) == 0
    rows = [line for line in capsys.readouterr().out.splitlines() if line.endswith("B") and " float" in line]
    assert any("post_attention_layernorm.weight" in row for row in rows)
    assert len({row.index(" float") for row in rows}) == 1
