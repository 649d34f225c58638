"""Checkpoints are whole or not there, the one before stays, and the log ends where the weights are."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from unittest.mock import Mock

import pytest

from refdiff.errors import CheckpointError
from refdiff.training import checkpoint
from refdiff.training.train import Trainer

Start = Callable[..., Trainer]


def names(out: Path) -> list[str]:
    return sorted(path.name for path in out.iterdir())


def test_the_last_two_stay(start: Start) -> None:
    trainer = start(max_steps=7)
    trainer.run()
    assert names(trainer.out) == ["corpus", "log.jsonl", "step-000006", "step-000007"]
    assert checkpoint.latest(trainer.out)[1]["step"] == 7


@pytest.mark.parametrize("file", ["model.safetensors", "optimizer.safetensors"])
def test_a_full_disk_leaves_the_checkpoint_before(start: Start, file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = start()
    home = "refdiff.model.weights.save" if file == "model.safetensors" else "refdiff.training.checkpoint"
    module = sys.modules[home]  # the package has a function of the first one's name

    def fill(record: dict) -> None:
        if record["step"] == 2:

            def full(path: Path, *args: object) -> None:
                path.write_bytes(b"half")
                raise OSError(28, "No space left on device", str(path))

            monkeypatch.setattr(module, "write_safetensors", full)

    with pytest.raises(OSError, match=r"cannot write the checkpoint of step 4: .*unharmed; free some space"):
        trainer.run(fill)
    assert names(trainer.out) == ["corpus", "log.jsonl", "step-000000", "step-000002"]
    monkeypatch.undo()
    again = Trainer.resume(trainer.out)
    assert again.step == 2
    assert again.run().name == "step-000006"


def test_ctrl_c_while_saving_leaves_no_half_checkpoint(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = start(max_steps=1)
    monkeypatch.setattr(checkpoint, "write_safetensors", Mock(side_effect=KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        trainer.run()
    assert names(trainer.out) == ["corpus"]


def test_a_step_saved_again_stays_whenever_saving_ends(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the two renames neither name has a checkpoint: Ctrl-C takes the old one back, and so does --resume."""
    trainer = start(max_steps=1)
    kept = trainer.run()
    rename = Path.rename

    def interrupt(path: Path, to: Path) -> Path:
        if to == kept and path.name == ".step-000001":
            raise KeyboardInterrupt
        return rename(path, to)

    monkeypatch.setattr(Path, "rename", interrupt)
    with pytest.raises(KeyboardInterrupt):
        trainer.save()
    assert names(trainer.out) == ["corpus", "log.jsonl", "step-000000", "step-000001"]
    monkeypatch.undo()
    kept.rename(trainer.out / ".step-000001-replaced")  # killed there
    (trainer.out / ".step-000001").mkdir()
    assert Trainer.resume(trainer.out).step == 1
    assert names(trainer.out) == ["corpus", "log.jsonl", "step-000000", "step-000001"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux only")
def test_a_disk_full_at_the_log(start: Start) -> None:
    trainer = start(max_steps=4)

    def fill(record: dict) -> None:
        if record["step"] == 2:  # what a write to a full disk does
            (trainer.out / "log.jsonl").rename(trainer.out / "kept")
            (trainer.out / "log.jsonl").symlink_to("/dev/full")

    why = "cannot write the record of step 3: No space left on device; free some space, then continue with --resume"
    with pytest.raises(OSError, match=why) as caught:
        trainer.run(fill)
    assert caught.value.filename == str(trainer.out / "log.jsonl")
    (trainer.out / "kept").rename(trainer.out / "log.jsonl")
    assert Trainer.resume(trainer.out).run().name == "step-000004"
    assert [record["step"] for record in checkpoint.read_log(trainer.out)] == [1, 2, 3, 4]


def test_unfinished_checkpoints_of_a_killed_run_are_deleted(start: Start) -> None:
    trainer = start(max_steps=2)
    trainer.run()
    (trainer.out / ".step-000004").mkdir()
    (trainer.out / ".step-000004" / "model.safetensors").write_bytes(b"half")
    assert checkpoint.latest(trainer.out)[0].name == "step-000002"
    assert not (trainer.out / ".step-000004").exists()
    (trainer.out / ".step-000004").mkdir()
    with checkpoint.locked(trainer.out):  # which a process does that trains, and may be saving
        assert checkpoint.latest(trainer.out)[0].name == "step-000002"
    assert (trainer.out / ".step-000004").exists()
    with pytest.raises(CheckpointError, match="no checkpoint to resume"):
        checkpoint.latest(trainer.out / "corpus")


def test_the_log_is_cut_to_the_checkpoint(tmp_path: Path) -> None:
    sample = "é\n\u2028\x85\x1c\r"  # each ends a line for str.splitlines
    records = [{"step": step, "loss": 1.0, "sample": sample} for step in (1, 2, 3)]
    for record in records:
        checkpoint.log(tmp_path, record)
    with (tmp_path / "log.jsonl").open("ab") as file:
        file.write('{"step": 4, "sample": "é'.encode()[:-1])
    assert checkpoint.read_log(tmp_path) == records
    checkpoint.truncate_log(tmp_path, 2)
    assert checkpoint.read_log(tmp_path / "log.jsonl") == records[:2]
    assert (tmp_path / "log.jsonl").read_bytes().count(b"\n") == 2
    checkpoint.truncate_log(tmp_path / "elsewhere", 2)


@pytest.mark.parametrize("line", ['{"step": 1}', "[1, 2]", "3", "null", "no JSON", '{"step": "1", "loss": 1.0}'])
def test_files_that_are_no_log_are_refused(tmp_path: Path, line: str) -> None:
    (tmp_path / "log.jsonl").write_text(f'{line}\n{{"step": 2, "loss": 1.0}}\n', encoding="utf-8")
    for use in (checkpoint.read_log, lambda out: checkpoint.truncate_log(out, 2)):
        with pytest.raises(ValueError, match=r"log\.jsonl, line 1: not a record of training .*; take the line out"):
            use(tmp_path)
    with pytest.raises(FileNotFoundError):
        checkpoint.read_log(tmp_path / "none.jsonl")


# Folders of others


@pytest.mark.skipif(sys.platform == "win32", reason="needs links and pipes")
@pytest.mark.parametrize(
    "file", ["log.jsonl", "step-000002", "step-000002/optimizer.safetensors", "corpus", "corpus/train.bin"]
)
@pytest.mark.parametrize("kind", ["pipe", "link", "dangling link"])
def test_no_pipe_and_no_link_out_of_the_folder_is_used(start: Start, file: str, kind: str) -> None:
    trainer = start(max_steps=2)
    trainer.run()
    path, outside = trainer.out / file, trainer.out.parent / "outside"
    path.rename(outside)
    if kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to(outside if kind == "link" else outside.with_name("none"))
    files = sorted(trainer.out.parent.rglob("*"))
    with pytest.raises(CheckpointError, match=f"{path.name}"):
        Trainer.resume(trainer.out)
    assert sorted(trainer.out.parent.rglob("*")) == files


@pytest.mark.skipif(sys.platform == "win32", reason="needs links")
def test_a_lock_that_is_a_link_makes_no_file(tmp_path: Path) -> None:
    (tmp_path / checkpoint.LOCK).symlink_to(tmp_path / "target")
    with pytest.raises(OSError, match="symbolic links"), checkpoint.locked(tmp_path):
        pass
    assert not (tmp_path / "target").exists()


# One process at a time


def test_a_folder_has_one_lock(tmp_path: Path) -> None:
    why = "another process or thread trains in this folder: wait until it ends, or name another folder"
    (tmp_path / checkpoint.LOCK).touch()  # left by a killed process, it locks nothing
    with checkpoint.locked(tmp_path):
        for _ in range(2):  # the first took nothing away
            with pytest.raises(RuntimeError, match=why), checkpoint.locked(tmp_path):
                pass
    with checkpoint.locked(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(sys.platform == "win32", reason="needs fork")
def test_a_forked_child_does_not_have_the_lock(tmp_path: Path) -> None:
    with checkpoint.locked(tmp_path):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # from Python 3.12 on of forks beside threads
            child = os.fork()
        if child == 0:
            try:
                with checkpoint.locked(tmp_path):
                    os._exit(0)
            except RuntimeError:
                os._exit(3)
            finally:
                os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 3


def test_a_trainer_locks_its_folder(start: Start) -> None:
    trainer = start(max_steps=2)
    refused = "another process or thread trains in this folder"

    def interfere(record: dict) -> None:
        assert trainer.save().name == f"step-{record['step']:06d}"  # which this trainer may
        with pytest.raises(RuntimeError, match=refused):
            Trainer.resume(trainer.out)

    trainer.run(interfere)
    again = Trainer.resume(trainer.out, changes={"max_steps": 3})
    files = {path: path.stat().st_mtime_ns for path in trainer.out.rglob("*")}
    with checkpoint.locked(trainer.out):
        for use in (again.run, again.save, lambda: Trainer.resume(trainer.out)):
            with pytest.raises(RuntimeError, match=refused):
                use()
    assert {path: path.stat().st_mtime_ns for path in trainer.out.rglob("*")} == files


def test_a_folder_that_was_made_for_nothing_is_taken_away(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no text"), checkpoint.locked(tmp_path / "one"):
        raise ValueError("no text")
    with checkpoint.locked(tmp_path / "two"):
        (tmp_path / "two" / "log.jsonl").touch()
    assert [path.name for path in tmp_path.iterdir()] == ["two"]
