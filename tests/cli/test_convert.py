"""`refdiff convert`: what it writes computes the same, and it says how nearly."""

from __future__ import annotations

import itertools
import os
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import refdiff
from refdiff.arrays import to_numpy
from refdiff.model import weights
from tests.model.models import CLASSES, ids, small_model
from tests.tolerances import close

from .conftest import Cli, Done

Convert = Callable[..., Done]
REPORT = re.compile(
    r"(?P<one>\w+) to (?P<other>\w+): 3 attention layers compared in float64 on random inputs\n"
    r"  largest difference: (?P<exact>\S+) of the largest output \(layer \d\)\n"
    r"  other weights: unchanged\n"
    r"as written in (?P<dtype>\w+): (?P<written>\S+) \(layer \d; rounding explains up to (?P<rounded>\S+)\)\n"
)


@pytest.fixture
def convert(here: Path, cli: Cli) -> Convert:
    """Convert the folder old to another variant in the folder new."""

    def convert(to: str, *options: object, new: object = "new") -> Done:
        return cli("convert", "old", new, "--to", to, *options)

    return convert


def report_of(done: Done) -> re.Match[str]:
    found = REPORT.fullmatch(done.out)
    assert found, done
    assert done.status == 0
    assert float(found["exact"]) < 1e-13
    return found


def refused(done: Done, *said: str, status: int = 1) -> None:
    """With one line, and nothing written."""
    assert (done.status, done.err.count("\n")) == (status, 1)
    assert all(part in done.err for part in said), done.err
    assert not Path("new").exists()


def saved(dtype: str = "float64", kind: Any = CLASSES[1], **options: Any) -> Any:
    small_model(kind, **options).save_pretrained("old", dtype=dtype)
    return kind.from_pretrained("old", dtype="float64")


def changed(name: str, value: float) -> None:
    """Give one number of the weights another value; or all of them where it is 0."""
    stored = {key: array.copy() for key, array in load_file("old/model.safetensors").items()}
    stored[name][(slice(0, None if value == 0 else 1),) * 2] = value
    save_file(stored, "old/model.safetensors", metadata={"format": "pt"})


def same_logits(model: Any, limit: float) -> Any:
    new = refdiff.DiffLlamaForCausalLM.from_pretrained("new", dtype="float64")
    close(new(ids(0, 1, 7)).logits, model(ids(0, 1, 7)).logits, limit)
    return new


@pytest.mark.parametrize(("one", "other", "last"), [("hf", "paper", "out"), ("paper", "hf", "o"), ("plain", "v2", "o")])
@pytest.mark.parametrize(("dtype", "limit"), [("float64", 1e-13), ("float32", 1e-5), ("bfloat16", 0.1)])
def test_a_converted_model_computes_the_same(
    one: str, other: str, last: str, dtype: str, limit: float, convert: Convert
) -> None:
    model = saved(dtype, variant=one)
    report = report_of(convert(other))
    assert (report["one"], report["other"], report["dtype"]) == (one, other, dtype)
    assert float(report["written"]) <= (1e-13 if one == "hf" else limit), "moving numbers rounds nothing"
    new = same_logits(model, 100 * limit)
    assert (new.config.variant, new.config.dtype) == (other, dtype)
    (stored,) = weights.headers(Path("new")).values()
    projections = {name.split(".")[4] for name in stored if ".self_attn." in name and "_proj." in name}
    assert projections - {"lambda_proj"} == {"q_proj", "k_proj", "v_proj", f"{last}_proj"}


def test_tokenizer_templates_and_generation_config_are_copied(
    tiny_checkpoint: Path, here: Path, convert: Convert
) -> None:
    old, new = shutil.copytree(tiny_checkpoint, here / "old"), here / "new"
    (old / "generation_config.json").write_text('{"max_new_tokens": 4}')
    (old / "additional_chat_templates").mkdir()
    (old / "additional_chat_templates" / "tool_use.jinja").write_text("{{ messages }}")
    for name in ("tokenizer.model", "vocab.json", "merges.txt", "added_tokens.json"):
        (old / name).write_text("{}")
    copied = {path.relative_to(old) for path in old.rglob("*") if path.is_file()}
    copied -= {Path("config.json"), Path("model.safetensors")}
    assert len(copied) == 8
    (old / "optimizer.pt").write_bytes(b"no part of a tokenizer")
    assert convert("paper").status == 0
    assert {path.relative_to(new) for path in new.rglob("*") if path.is_file()} == {
        *copied, Path("config.json"), Path("model.safetensors"),
    }  # fmt: skip
    for path in copied:
        assert (new / path).read_bytes() == (old / path).read_bytes()
    texts = [refdiff.DiffLlamaForCausalLM.from_pretrained(x).generate([[0, 5, 7]], seed=0) for x in (old, new)]
    assert np.array_equal(*texts)
    assert texts[0].shape[1] <= 7


@pytest.mark.parametrize(
    ("one", "other", "said"),
    [
        ("plain", ["hf"], "refdiff convert: error: old: cannot convert variant 'plain' to 'hf' exactly: the norm"),
        ("hf", ["paper", "--eager"], "error: old: --eager: got weights in the variant 'hf', expected \"paper\""),
        ("paper", ["hf", "--eager"], "repeats 4 key heads to 8 before it pairs them"),
    ],
)
def test_a_conversion_without_an_exact_answer_writes_nothing(
    one: str, other: list[str], said: str, convert: Convert
) -> None:
    saved(variant=one)
    done = convert(*other)
    assert done.out == ""
    refused(done, said)


def test_nothing_is_overwritten(here: Path, convert: Convert) -> None:
    saved()
    (here / "folder").mkdir()
    for name, kept in (("folder", here / "folder" / "notes.txt"), ("file", here / "file")):
        kept.write_text("mine", encoding="utf-8")
        said = f"OUTPUT {name}: exists already; name a new folder, or an empty one"
        refused(convert("paper", new=name), said, status=2)
        assert kept.read_text(encoding="utf-8") == "mine"
    (here / "link").symlink_to(here / "gone")
    said = f"link: links to {here / 'gone'}, which does not exist; make that folder"
    refused(convert("paper", new="link"), said, status=2)


def test_a_full_disk_names_the_folder_that_was_named(convert: Convert, monkeypatch: pytest.MonkeyPatch) -> None:
    saved()
    module = sys.modules["refdiff.model.weights.save"]  # the package has a function of this name
    monkeypatch.setattr(module, "write_safetensors", Mock(side_effect=OSError(28, "No space left on device")))
    refused(convert("paper"), "error: new: cannot save the model (", "No space left on device")


def test_a_wrong_conversion_is_not_written(convert: Convert, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("refdiff.model.variants.rearrange.interleaved", lambda config: np.arange(config.head_dim))
    saved()
    refused(convert("paper"), "is more than rounding; nothing was written")


def test_weights_beyond_the_range_of_the_written_type_are_refused(convert: Convert) -> None:
    saved(variant="hf")
    changed("model.layers.1.self_attn.o_proj.weight", 1e39)  # infinite in float32
    said = "attention layer 1, as written in float32, gives NaN or infinity"
    refused(convert("paper", "--dtype", "float32"), said)


def test_a_failed_write_leaves_nothing_behind(here: Path, convert: Convert) -> None:
    saved(variant="plain")
    changed("model.layers.1.self_attn.o_proj.weight", 4e4)  # v2's is twice as large
    for name in ("empty", "there"):
        (here / name).mkdir()
    before = sorted(here.rglob("*"))
    for new in ("new", "empty", "there/not/yet/new"):
        done = convert("v2", "--dtype", "float16", new=new)
        assert done.status == 1
        assert "beyond float16's range" in done.err
        assert sorted(here.rglob("*")) == before


def test_no_file_from_outside_the_checkpoint_is_copied(tiny_checkpoint: Path, here: Path, convert: Convert) -> None:
    folder = shutil.copytree(tiny_checkpoint, here / "old")
    (here / "id_rsa").write_text("secret")
    (folder / "vocab.json").symlink_to(here / "id_rsa")
    refused(convert("paper"), "'vocab.json' is a link that leads out of the folder", status=2)


def test_ctrl_c_leaves_nothing_behind(
    tiny_checkpoint: Path, here: Path, convert: Convert, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = shutil.copyfileobj

    def interrupted(source: Any, target: Any) -> None:
        copy(source, target)
        if target.name.endswith(".jinja"):  # the last file, in a folder of its own
            raise KeyboardInterrupt

    folder = shutil.copytree(tiny_checkpoint, here / "old")
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "a.jinja").touch()
    monkeypatch.setattr("shutil.copyfileobj", interrupted)
    assert convert("paper").status == 130
    assert not (here / "new").exists()


@pytest.mark.parametrize("call", range(9))
def test_a_conversion_that_was_killed_is_started_again(
    call: int, tiny_checkpoint: Path, here: Path, convert: Convert
) -> None:
    """Killed at any renaming of a file, the last step of each write; the same command then ends, or has ended."""
    shutil.copytree(tiny_checkpoint, here / "old")
    calls = itertools.count()

    def kill(source: Any, target: Any) -> None:
        if next(calls) == call:
            os._exit(9)
        replace(source, target)

    replace = os.replace
    if (child := os.fork()) == 0:
        try:
            os.replace = kill  # type: ignore[assignment]
            Path.replace = lambda self, target: kill(self, target)  # type: ignore[assignment, method-assign]
            convert("paper", "-q")
        finally:
            os._exit(0)
    status = os.waitstatus_to_exitcode(os.wait4(child, 0)[1])
    assert status == 9, "it is killed before it ends"
    done = convert("paper")
    assert done.status == 0 or "OUTPUT new: exists already" in done.err, done
    refdiff.DiffLlamaForCausalLM.from_pretrained("new")
    assert sorted(path.name for path in (here / "new").iterdir()) == sorted(
        path.name for path in (here / "old").iterdir()
    )


def test_the_other_weights_are_compared_as_written(convert: Convert, monkeypatch: pytest.MonkeyPatch) -> None:
    saved()
    save = weights.save

    def damaged(folder: Path, config: Any, params: Any, *rest: Any, **options: Any) -> None:
        norm = {"weight": 2 * to_numpy(params["model"]["norm"]["weight"])}
        save(folder, config, {**params, "model": {**params["model"], "norm": norm}}, *rest, **options)

    monkeypatch.setattr(weights, "save", damaged)
    refused(convert("paper"), "model.norm.weight: changed, as written in float64, without being converted;")


def test_two_runs_at_once_leave_the_files_of_one(here: Path, convert: Convert, monkeypatch: pytest.MonkeyPatch) -> None:
    saved(variant="plain")
    files = ["config.json", "generation_config.json", "model.safetensors"]
    prove, others = refdiff.convert.prove, ["new"]

    def overtaken(*arguments: Any, **options: Any) -> Any:
        if others:
            assert convert("v2", new=others.pop()).status == 0
        return prove(*arguments, **options)

    monkeypatch.setattr("refdiff.convert.prove", overtaken)
    done = convert("v2")
    assert done.status == 2
    assert "OUTPUT new: exists already" in done.err
    assert sorted(path.name for path in (here / "new").iterdir()) == files
    save, others = weights.save, ["second"]
    monkeypatch.setattr("refdiff.convert.prove", prove)

    def meanwhile(*arguments: Any, **options: Any) -> None:
        save(*arguments, **options)
        if others:
            assert "another process writes here; wait until it ends" in convert("v2", new=others.pop()).err

    monkeypatch.setattr(weights, "save", meanwhile)
    assert convert("v2", new="second").status == 0
    assert sorted(path.name for path in (here / "second").iterdir()) == files
