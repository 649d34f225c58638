"""A checkpoint saved over another: killed at any file operation, it is the old one or the new one."""

from __future__ import annotations

import json
import os
import shutil
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from refdiff import CheckpointError, DiffLlamaConfig, DiffLlamaForCausalLM
from refdiff.model.commit import replacing
from refdiff.model.weights import nest, parameter_shapes
from tests.model.weights.files import LAYOUTS, layout_changes, tiny_config

CHANGES = layout_changes(("none", "single", "other config"), ("single", "two shards", "other config"))
OPERATIONS = {"open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate", "os.link", "os.symlink"}
OLD, NEW = (1e-5, 1.0, 7), (0.25, 2.0, 9)
KILLED = 99


@pytest.fixture(autouse=True)
def _quick_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # a test has no power to lose


def save(folder: Path, state: tuple[float, float, int], size: int | str) -> None:
    """Save a model whose config, weights and generation config are told apart by one number each."""
    epsilon, value, tokens = state
    config = tiny_config(rms_norm_eps=epsilon)
    shapes = parameter_shapes(config, "DiffLlamaForCausalLM")
    params = nest({name: np.full(shape, value, np.float32) for name, shape in shapes.items()})
    model = DiffLlamaForCausalLM(config, params, generation_config={"max_new_tokens": tokens})
    model.save_pretrained(folder, size)


def loaded(folder: Path) -> tuple[float, float, int] | None:
    """What refdiff finds; None if it is told that there is nothing."""
    try:
        model = DiffLlamaForCausalLM.from_pretrained(folder, kernels="reference")
    except CheckpointError:
        return None
    (value,) = {float(v) for v in np.unique(model.params["lm_head"]["weight"])}
    (norm,) = {float(v) for v in np.unique(model.params["model"]["norm"]["weight"])}
    assert value == norm
    return model.config.rms_norm_eps, value, model.generation_config["max_new_tokens"]


def seen_by_others(folder: Path) -> tuple[float, float, int] | None:
    """What a program finds that knows of nothing but the files' names; None where there are no weights."""
    index, single = folder / "model.safetensors.index.json", folder / "model.safetensors"
    if single.exists():
        files = {"model.safetensors"}
    elif index.exists():
        files = set(json.loads(index.read_bytes())["weight_map"].values())
    else:
        return None
    values = {
        float(v) for name in files for a in safetensors.numpy.load_file(folder / name).values() for v in np.unique(a)
    }
    (value,) = values
    config, generation = (
        json.loads((folder / name).read_bytes()) for name in ("config.json", "generation_config.json")
    )
    return config["rms_norm_eps"], value, generation["max_new_tokens"]


def in_a_child(folder: Path, step: int, action: Callable[[], None]) -> int:
    """Run in a forked process that dies before its `step`-th operation on a file of `folder`; return its status."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # from Python 3.12 on of forks beside threads
        child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    count, sync = 0, os.fsync

    def counted() -> None:
        nonlocal count
        count += 1
        if count == step:
            os._exit(KILLED)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event in OPERATIONS and any(str(folder) in str(argument) for argument in arguments):
            counted()

    def synced(descriptor: int) -> None:
        counted()
        sync(descriptor)

    try:
        os.fsync = synced
        sys.addaudithook(hook)
        action()
    except BaseException:
        os._exit(1)
    os._exit(0)


@pytest.mark.parametrize(("before", "after", "change"), CHANGES)
def test_kill_at_every_file_operation(tmp_path: Path, before: str, after: str, change: str) -> None:
    new = NEW if change == "other config" else (OLD[0], NEW[1], NEW[2])
    old = None if before == "none" else OLD
    seen = []
    for step in range(1, 1000):
        folder = tmp_path / f"checkpoint{step}"
        if old is not None:
            save(folder, old, LAYOUTS[before])
        status = in_a_child(folder, step, lambda folder=folder: save(folder, new, LAYOUTS[after]))
        assert seen_by_others(folder) in (old, new, None)
        seen.append(loaded(folder))
        save(folder, new, LAYOUTS[after])  # and nothing is left that is in the way
        assert loaded(folder) == new
        assert not [path.name for path in folder.iterdir() if path.name.startswith(".")]
        if status == 0:
            break
        assert status == KILLED
    assert status == 0
    assert step > 10
    assert set(seen) == {old, new}
    assert seen == sorted(seen, key=lambda state: state == new)  # once new, it stays new


@pytest.fixture(scope="module")
def half_saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which a save to four shards was killed right after it counts; its new files are in .refdiff-save."""
    folder = tmp_path_factory.mktemp("half-saved")
    save(folder, OLD, 900)
    for step in range(1, 1000):
        status = in_a_child(folder, step, lambda: save(folder, NEW, 400))
        if (folder / ".refdiff-save").is_dir():
            break
    assert status == KILLED
    assert step > 10
    return folder


@pytest.fixture
def interrupted(half_saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(half_saved, tmp_path / "checkpoint"))


def test_a_load_that_is_killed_while_it_finishes_a_save_is_finished_by_the_next(interrupted: Path) -> None:
    for step in range(1, 1000):
        if in_a_child(interrupted, step, lambda: loaded(interrupted)) == 0:
            break
    assert step > 5
    assert loaded(interrupted) == NEW
    assert not (interrupted / ".refdiff-save").exists()
    index = json.loads((interrupted / "model.safetensors.index.json").read_bytes())
    assert {path.name for path in interrupted.glob("*.safetensors")} == set(index["weight_map"].values())


def test_a_folder_that_cannot_be_written_says_what_lies_in_it(
    interrupted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", refused)
        patch.setattr(os, "unlink", refused)
        with pytest.raises(
            CheckpointError, match=r"a save was interrupted; its files are in \.refdiff-save and cannot be moved .*Perm"
        ):
            DiffLlamaConfig.from_pretrained(interrupted)
    assert loaded(interrupted) == NEW


@pytest.mark.parametrize("listed", [["../secret"], ["config.json", "notes.txt"], [3], "config.json", None])
def test_a_list_from_elsewhere_moves_and_deletes_nothing_of_others(interrupted: Path, listed: Any) -> None:
    (interrupted / ".refdiff-save" / "files.json").write_text(json.dumps({"files": listed}))
    before = {path.name for path in interrupted.iterdir()}
    with pytest.raises(CheckpointError, match=r"files\.json: not a list that a save has left; delete "):
        DiffLlamaForCausalLM.from_pretrained(interrupted)
    assert {path.name for path in interrupted.iterdir()} == before


@pytest.mark.parametrize("kind", ["file", "link"])
def test_a_file_with_the_name_of_an_interrupted_save_is_refused(tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "checkpoint"
    save(folder, OLD, "5GB")
    if kind == "file":
        (folder / ".refdiff-save").touch()
    else:
        (tmp_path / "secret").mkdir()
        (folder / ".refdiff-save").symlink_to(tmp_path / "secret")
    with pytest.raises(CheckpointError, match=r"\.refdiff-save: not a folder that a save has left; delete it"):
        DiffLlamaForCausalLM.from_pretrained(folder)


def test_a_save_over_an_interrupted_one_is_what_counts(interrupted: Path) -> None:
    save(interrupted, OLD, 400)
    assert loaded(interrupted) == OLD


def test_a_config_that_leads_out_of_the_folder_is_replaced_by_the_same(tmp_path: Path) -> None:
    folder, outside = tmp_path / "checkpoint", tmp_path / "config.json"
    save(folder, OLD, "5GB")
    shutil.move(folder / "config.json", outside)
    (folder / "config.json").symlink_to(outside)
    save(folder, OLD, "5GB")
    assert not (folder / "config.json").is_symlink()
    assert loaded(folder) == OLD


def test_a_checkpoint_is_staged_in_its_folder(tmp_path: Path) -> None:
    """On the disk that it will be on, so that its files are moved there and not copied."""
    folder = tmp_path / "not there" / "yet"
    with replacing(folder) as staging:
        assert staging.parent == folder
        left = staging.with_name(f"{staging.name}-of-a-killed-process")
        left.mkdir()
        staging.with_name(f"{staging.name}-is-no-folder").touch()
    with replacing(folder):  # what cannot be deleted is no reason not to save
        assert not left.exists()
