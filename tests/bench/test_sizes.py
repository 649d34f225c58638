"""Checkpoints of random weights in the dimensions of published models."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

import refdiff
from refdiff.bench import sizes
from refdiff.model.weights.names import count_parameters, parameter_shapes


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("kajuma/DiffLlama-0.3B-handcut", 1_235_818_496),
        ("kajuma/DiffLlama-1B", 1_388_412_416),
        ("tiny", 512 * 64 + 2 * (2 * 64 * 64 + 2 * 32 * 64 + 3 * 64 * 128 + 4 * 8 + 2 * 64) + 64),
    ],
)
def test_dimensions(name: str, count: int) -> None:
    config = refdiff.DiffLlamaConfig(**sizes.LIKE[name])
    assert count_parameters(parameter_shapes(config, "DiffLlamaForCausalLM").values()) == count


def test_a_checkpoint_is_written_once(tmp_path: Path) -> None:
    folder = tmp_path / "new"
    sizes.write_like("tiny", folder)
    model = refdiff.DiffLlamaForCausalLM.from_pretrained(folder)
    assert model.config.rope_parameters["rope_type"] == "llama3"
    assert model.dtype == "float32"
    tokenizer = refdiff.Tokenizer.from_pretrained(folder)
    ids = tokenizer.encode("Once あ")
    assert ids[0] == 1
    assert len(ids) == 1 + 5 + 3
    assert tokenizer.decode(ids, skip_special_tokens=True) == "Once あ"
    assert len(json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]) == 512
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    sizes.write_like("tiny", folder)
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    (folder / "tokenizer_config.json").unlink()  # ended before the last file
    sizes.write_like("tiny", folder)
    assert (folder / "tokenizer_config.json").exists()
    assert (folder / "model.safetensors").stat().st_mtime_ns == before["model.safetensors"]


def test_another_model_is_not_written_over(tiny_checkpoint: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_checkpoint, tmp_path / "copy")
    before = (folder / "model.safetensors").read_bytes()
    with pytest.raises(
        ValueError,
        match=re.escape(f"--folder: got {folder}, which has another model than tiny in float32; name a new folder"),
    ):
        sizes.write_like("tiny", folder)
    assert (folder / "model.safetensors").read_bytes() == before
    sizes.write_like("tiny", tmp_path / "half", "bfloat16")
    sizes.write_like("tiny", tmp_path / "half", "bfloat16")
    with pytest.raises(ValueError, match="another model than tiny in float32; name a new folder, or measure that"):
        sizes.write_like("tiny", tmp_path / "half")


def test_a_folder_with_other_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    for folder, why in ((tmp_path, "is not empty and has no config.json"), (tmp_path / "thesis.tex", "is a file")):
        with pytest.raises(ValueError, match=re.escape(f"--folder: got {folder}, which {why}; name")):
            sizes.write_like("tiny", folder)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
