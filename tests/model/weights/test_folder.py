"""Which files belong to a checkpoint, and which may be read at all."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from refdiff import CheckpointError
from refdiff.model.weights import folder as folder_module
from refdiff.model.weights import headers
from refdiff.model.weights.folder import INDEX, SINGLE, open_checkpoint
from tests.model.weights.files import random_tensors, split, write

FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


def refused(folder: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(folder)
    return str(caught.value)


def with_index(folder: Path, index: object) -> Path:
    write(folder, split(random_tensors(), 2))
    (folder / INDEX).write_bytes(index if isinstance(index, bytes) else json.dumps(index).encode())
    return folder


def with_map(folder: Path, **changes: object) -> Path:
    """Shards whose index says something else: `None` takes a tensor out of it."""
    index = json.loads(split(random_tensors(), 2)[INDEX])
    weight_map = {**index["weight_map"], **changes}
    return with_index(folder, {"weight_map": {k: v for k, v in weight_map.items() if v is not None}})


def test_headers(tmp_path: Path) -> None:
    write(tmp_path, split(random_tensors(dtype="BF16"), 2))
    found = headers(tmp_path)
    assert list(found) == [FIRST, SECOND]
    assert found[FIRST]["model.embed_tokens.weight"] == ("BF16", (7, 6), 84)
    assert found[SECOND]["lm_head.weight"] == ("BF16", (7, 6), 84)


def test_nothing(tmp_path: Path) -> None:
    assert refused(tmp_path) == f"{tmp_path}: has neither {SINGLE} nor {INDEX}"
    assert refused(tmp_path / "nowhere") == f"{tmp_path / 'nowhere'}: is not a folder"


def test_pickle_instead(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x02")
    message = refused(tmp_path)
    assert "'pytorch_model.bin' is a pickle: unpickling can run any code" in message
    assert message.endswith("with transformers: from_pretrained(...).save_pretrained(...)")


@pytest.mark.parametrize(
    ("index", "message"),
    [
        (b"{", "not valid JSON"),
        (b'{"weight_map": {"a": "b.safetensors", "a": "b.safetensors"}}', "stands twice"),
        ({}, "weight_map: got None, expected tensor → file name"),
        ({"weight_map": {"w": 1}}, "weight_map: got 1 for 'w', expected the name of a safetensors file"),
        ({"weight_map": {"w": "pytorch_model-00001-of-00002.bin"}}, "for 'w', expected the name of a safetensors file"),
        ({"weight_map": {"w": "../a.safetensors"}}, "is not a plain name"),
        ({"weight_map": {"w": "/etc/a.safetensors"}}, "is not a plain name"),
        ({"weight_map": {"w": "gone.safetensors"}}, "1 of 1 files are missing: 'gone.safetensors'"),
    ],
)
def test_index_that_cannot_be(tmp_path: Path, index: object, message: str) -> None:
    text = refused(with_index(tmp_path, index))
    assert message in text
    assert str(tmp_path) in text


def test_tensor_in_another_shard(tmp_path: Path) -> None:
    message = refused(with_map(tmp_path, **{"lm_head.weight": FIRST}))
    assert "2 problems" in message
    assert f"'lm_head.weight' should be in '{FIRST}', but is not" in message
    assert f"'lm_head.weight' is in '{SECOND}', but the index says '{FIRST}'" in message


@pytest.mark.parametrize("gone", [True, False])
def test_save_in_the_middle_of_a_load_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gone: bool) -> None:
    write(tmp_path, split(random_tensors(), 2))
    original, replaced = folder_module.open_safetensors, []

    def meanwhile(path: Path, **options: object) -> object:
        if path.name == SECOND:
            replaced.append(path)
            content = (tmp_path / INDEX).read_bytes()
            (tmp_path / "newer").write_bytes(content)
            (tmp_path / "newer").replace(tmp_path / INDEX)
            if gone:
                (tmp_path / INDEX).unlink()
        return original(path, **options)

    monkeypatch.setattr(folder_module, "open_safetensors", meanwhile)
    says = "has neither" if gone else "was replaced while the checkpoint was being loaded; load it again"
    assert says in refused(tmp_path)
    assert len(replaced) == (1 if gone else 3)
