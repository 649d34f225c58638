"""A checkpoint leads to files of its own folder, and to no other."""

from __future__ import annotations

from pathlib import Path

import pytest

import refdiff
from refdiff import CheckpointError
from refdiff.hub import CONFIG, TOKENIZER, snapshot
from refdiff.hub.links import inside


@pytest.mark.parametrize(
    "name",
    [
        "", ".", "..", "../model.safetensors", "sub/model.safetensors", "/etc/passwd", "..\\model.safetensors",
        "C:model.safetensors", "model.safetensors\0", "./model.safetensors", "model.safetensors/",
    ],
)  # fmt: skip
def test_names_with_a_way_out(tmp_path: Path, name: str) -> None:
    with pytest.raises(CheckpointError, match="is not a plain name of a file in this folder"):
        inside(tmp_path, name)


def test_a_name_in_the_folder(tmp_path: Path) -> None:
    assert inside(tmp_path, "model.safetensors") == tmp_path.resolve() / "model.safetensors"


@pytest.mark.parametrize("name", ["\ud800.safetensors", "a\nb", "\x1b[2J"])
def test_names_that_are_no_text(tmp_path: Path, name: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        inside(tmp_path, name)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("name", [*CONFIG, *TOKENIZER, "model-00001-of-00002.safetensors"])
def test_links_out_of_a_local_folder_are_refused_before_anything_is_read(tmp_path: Path, name: str) -> None:
    (tmp_path / "secret").write_text("{}")
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    (folder / name).symlink_to("../secret")
    with pytest.raises(CheckpointError, match=f"'{name}' is a link that leads out of the checkpoint's folder"):
        snapshot(folder)
    with pytest.raises(CheckpointError, match="leads out"):
        refdiff.DiffLlamaConfig.from_pretrained(folder)
    with pytest.raises(CheckpointError, match="leads out"):
        refdiff.Tokenizer.from_pretrained(folder)


def test_links_within_a_local_folder_are_fine(tmp_path: Path) -> None:
    (tmp_path / "v1.json").write_text("{}")
    (tmp_path / "config.json").symlink_to("v1.json")
    assert snapshot(tmp_path) == tmp_path


@pytest.mark.parametrize("whole", [True, False])
def test_further_chat_templates_are_looked_at_too(tmp_path: Path, whole: bool) -> None:
    outside, folder = tmp_path / "outside", tmp_path / "checkpoint"
    for path in (outside, folder):
        path.mkdir()
    (outside / "rag.jinja").write_text("secret")
    if whole:
        (folder / "additional_chat_templates").symlink_to(outside)
    else:
        (folder / "additional_chat_templates").mkdir()
        (folder / "additional_chat_templates" / "rag.jinja").symlink_to(outside / "rag.jinja")
    with pytest.raises(CheckpointError, match=r"'rag\.jinja' is a link that leads out"):
        snapshot(folder)
    (outside / "rag.jinja").unlink()
    if not whole:
        (folder / "additional_chat_templates" / "rag.jinja").unlink()
        (folder / "additional_chat_templates" / "rag.jinja").write_text("{{ x }}")
    assert snapshot(folder) == folder
