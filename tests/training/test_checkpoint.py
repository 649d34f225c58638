"""Checkpoints are whole or not there, the one before stays, and the log ends where the weights are."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import refdiff
from refdiff.errors import CheckpointError
from refdiff.training import checkpoint
from refdiff.training.train import Trainer

Start = Callable[..., Trainer]


def names(out: Path) -> list[str]:
    return sorted(path.name for path in out.iterdir())


def test_the_last_two_stay(start: Start) -> None:
    trainer = start(steps=7)
    trainer.run()
    assert names(trainer.out) == ["corpus", "log.jsonl", "step-000006", "step-000007"]
    assert checkpoint.latest(trainer.out)[1]["step"] == 7


def test_a_step_can_be_saved_again(start: Start) -> None:
    trainer = start()
    trainer.save()
    trainer.model.params["model"]["norm"]["weight"][0] = 7
    folder = trainer.save()
    assert refdiff.DiffLlamaForCausalLM.from_pretrained(folder).params["model"]["norm"]["weight"][0] == 7
    assert names(trainer.out) == ["corpus", "step-000000"]


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

    with pytest.raises(OSError, match=r"cannot write the checkpoint of step 4: .*unharmed: free some space"):
        trainer.run(fill)
    assert names(trainer.out) == ["corpus", "log.jsonl", "step-000000", "step-000002"]
    monkeypatch.undo()
    again = Trainer.resume(trainer.out)
    assert again.step == 2
    assert again.run().name == "step-000006"


def test_what_a_killed_run_left_half_written_is_swept_up(start: Start) -> None:
    trainer = start(steps=2)
    trainer.run()
    (trainer.out / ".step-000004").mkdir()
    (trainer.out / ".step-000004" / "model.safetensors").write_bytes(b"half")
    assert checkpoint.latest(trainer.out)[0].name == "step-000002"
    assert not (trainer.out / ".step-000004").exists()


def test_the_log_is_cut_to_the_checkpoint(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        checkpoint.log(tmp_path, {"step": step, "sample": "é\n"})
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')
    checkpoint.cut_log(tmp_path, 2)
    lines = (tmp_path / "log.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2]
    checkpoint.cut_log(tmp_path / "elsewhere", 2)


def test_nothing_to_go_on_from(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no checkpoint to go on from"):
        checkpoint.latest(tmp_path)


def test_a_broken_optimizer_file_is_named(start: Start) -> None:
    trainer = start(steps=1)
    folder = trainer.run()
    (folder / "optimizer.safetensors").write_bytes(b"half")
    with pytest.raises(CheckpointError, match=r"optimizer\.safetensors: cannot be read"):
        Trainer.resume(trainer.out)
