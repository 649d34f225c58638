"""`refdiff convert`: what it writes computes the same, and it says how nearly."""

from __future__ import annotations

import math
import os
import re
import shutil
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import refdiff
from refdiff.arrays import to_numpy
from refdiff.cli import convert as convert_command
from refdiff.cli import main
from refdiff.model import config_checks, weights
from tests.model.models import CLASSES, WIRINGS, ids, small_config, small_model
from tests.tolerances import close

Capture = pytest.CaptureFixture[str]
REPORT = re.compile(
    r"\A(?P<one>\w+) to (?P<other>\w+): 3 attention layers compared in float64 on random inputs\n"
    r"  largest difference: (?P<exact>\S+) of the largest output \(layer \d\)\n"
    r"  other weights: unchanged\n"
    r"as written in (?P<dtype>\w+)\n"
    r"  largest difference: (?P<written>\S+) \(layer \d\)\n"
    r"  what rounding every weight once may cause: (?P<rounded>\S+)\n\Z"
)


def saved(folder: Path, dtype: str = "float64", kind: Any = CLASSES[1], **options: Any) -> Any:
    model = small_model(kind, **options)
    model.save_pretrained(folder, dtype=dtype)
    return kind.from_pretrained(folder, dtype="float64")


@pytest.mark.parametrize(("one", "other"), [("hf", "paper"), ("paper", "hf"), ("none", "v2")])
@pytest.mark.parametrize(("dtype", "limit"), [("float64", 1e-13), ("float32", 1e-5), ("bfloat16", 0.1)])
def test_what_is_written_computes_the_same(
    one: str, other: str, dtype: str, limit: float, tmp_path: Path, capsys: Capture
) -> None:
    model = saved(tmp_path / "old", dtype, wiring=one)
    assert main(["convert", str(tmp_path / "old"), str(tmp_path / "new"), "--to", other]) == 0
    report = REPORT.match(capsys.readouterr().out)
    assert report
    assert (report["one"], report["other"], report["dtype"]) == (one, other, dtype)
    assert float(report["exact"]) < 1e-13
    assert float(report["written"]) <= limit
    new = refdiff.DiffLlamaForCausalLM.from_pretrained(tmp_path / "new", dtype="float64")
    assert new.config.wiring == other
    assert new.config.dtype == dtype
    close(new(ids(0, 1, 7)).logits, model(ids(0, 1, 7)).logits, 100 * limit)


def test_every_variant_has_its_names() -> None:
    assert convert_command.WIRINGS == WIRINGS == tuple(config_checks.MODEL_TYPES) == tuple(config_checks.PAIRING)


def test_only_moving_numbers_rounds_nothing(tmp_path: Path, capsys: Capture) -> None:
    saved(tmp_path / "old", "bfloat16", wiring="hf")
    assert main(["convert", str(tmp_path / "old"), str(tmp_path / "new"), "--to", "paper"]) == 0
    report = REPORT.match(capsys.readouterr().out)
    assert report
    assert float(report["written"]) < 1e-13


def test_weights_under_the_names_of_transformers(tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    model = saved(tmp_path / "old", wiring="paper")
    stored = load_file(tmp_path / "old" / "model.safetensors")
    save_file(
        {name.replace("out_proj", "o_proj"): array for name, array in stored.items()},
        tmp_path / "old" / "model.safetensors",
        metadata={"format": "pt"},
    )
    assert main(["convert", str(tmp_path / "old"), str(tmp_path / "new"), "--to", "hf"]) == 0
    new = refdiff.DiffLlamaForCausalLM.from_pretrained(tmp_path / "new", dtype="float64")
    close(new(ids(0, 1, 7)).logits, model(ids(0, 1, 7)).logits, 1e-11)


def test_another_type(tmp_path: Path, capsys: Capture) -> None:
    saved(tmp_path / "old", "bfloat16", wiring="paper")
    assert main(["convert", str(tmp_path / "old"), str(tmp_path / "new"), "--to", "hf", "--dtype", "float32"]) == 0
    report = REPORT.match(capsys.readouterr().out)
    assert report
    assert report["dtype"] == "float32"
    assert float(report["written"]) < 1e-5


@pytest.mark.parametrize("kind", CLASSES)
def test_every_class_keeps_its_head(kind: Any, tmp_path: Path) -> None:
    model = saved(tmp_path / "old", kind=kind, wiring="none")
    assert main(["convert", str(tmp_path / "old"), str(tmp_path / "new"), "--to", "v2"]) == 0
    new = kind.from_pretrained(tmp_path / "new")
    assert new.config.architectures == [kind.__name__]
    a, b = model(ids(1, 1, 5)), new(ids(1, 1, 5))
    for name, value in a.items():
        if name != "cache":
            close(b[name], value, 1e-10)


def test_tokenizer_templates_and_generation_config_come_along(tiny_checkpoint: Path, tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    shutil.copytree(tiny_checkpoint, old)
    (old / "generation_config.json").write_text('{"max_new_tokens": 4}')
    (old / "additional_chat_templates").mkdir()
    (old / "additional_chat_templates" / "tool_use.jinja").write_text("{{ messages }}")
    assert main(["convert", str(old), str(new), "--to", "paper"]) == 0
    copied = {path.relative_to(old) for path in old.rglob("*") if path.is_file()}
    copied -= {Path("config.json"), Path("model.safetensors")}
    assert len(copied) >= 4
    for path in copied:
        assert (new / path).read_bytes() == (old / path).read_bytes()
    one, other = (refdiff.DiffLlamaForCausalLM.from_pretrained(folder) for folder in (old, new))
    texts = [m.generate([[0, 5, 7]], seed=0) for m in (one, other)]
    assert np.array_equal(*texts)
    assert texts[0].shape[1] <= 7


def test_what_has_no_exact_answer_writes_nothing(tmp_path: Path, capsys: Capture) -> None:
    saved(tmp_path / "old", wiring="none")
    assert main(["convert", str(tmp_path / "old"), str(tmp_path / "new"), "--to", "hf"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(
        f"refdiff convert: error: {tmp_path / 'old'}: cannot convert wiring 'none' to 'hf' exactly: the norm"
    )
    assert err.count("\n") == 1
    assert not (tmp_path / "new").exists()


def test_weights_of_the_eager_file(tmp_path: Path, capsys: Capture) -> None:
    saved(tmp_path / "old", wiring="paper")
    assert main(["convert", str(tmp_path / "old"), str(tmp_path / "new"), "--to", "hf", "--eager"]) == 1
    assert "repeats 4 key heads to 8 before it pairs them" in capsys.readouterr().err


@pytest.mark.parametrize("content", ["a file in it", "a file of its name"])
def test_nothing_is_written_over(content: str, tmp_path: Path, capsys: Capture) -> None:
    saved(tmp_path / "old")
    new = tmp_path / "new"
    if content == "a file in it":
        new.mkdir()
    kept = new / "notes.txt" if content == "a file in it" else new
    kept.write_text("mine", encoding="utf-8")
    assert main(["convert", str(tmp_path / "old"), str(new), "--to", "paper"]) == 2
    assert f"{new}: exists already; name a new folder, or an empty one" in capsys.readouterr().err
    assert kept.read_text(encoding="utf-8") == "mine"


def test_a_wrong_conversion_is_not_written(tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("refdiff.convert._interleaved", lambda config: np.arange(config.head_dim))
    saved(tmp_path / "old")
    assert main(["convert", str(tmp_path / "old"), str(tmp_path / "new"), "--to", "paper"]) == 1
    assert "is more than rounding; nothing was written" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def changed(folder: Path, name: str, value: float) -> None:
    """Give one number of the weights in `folder` another value; or all of them where it is 0."""
    from safetensors.numpy import load_file, save_file

    stored = {key: array.copy() for key, array in load_file(folder / "model.safetensors").items()}
    stored[name][(slice(0, None if value == 0 else 1),) * 2] = value
    save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_finite_cannot_be_proved(layer: int, value: float, tmp_path: Path, capsys: Capture) -> None:
    saved(tmp_path / "old", wiring="hf")
    changed(tmp_path / "old", f"model.layers.{layer}.self_attn.o_proj.weight", value)
    assert main(["convert", str(tmp_path / "old"), str(tmp_path / "new"), "--to", "paper"]) == 1
    assert f"attention layer {layer} gives NaN or infinity, or zeros in one" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("layer", [0, 1])
def test_a_layer_that_gives_zeros_is_converted(layer: int, tmp_path: Path, capsys: Capture) -> None:
    saved(tmp_path / "old", wiring="hf")
    changed(tmp_path / "old", f"model.layers.{layer}.self_attn.o_proj.weight", 0)
    assert main(["convert", str(tmp_path / "old"), str(tmp_path / "new"), "--to", "paper"]) == 0
    report = REPORT.match(capsys.readouterr().out)
    assert report
    assert float(report["exact"]) < 1e-13


def test_what_the_written_type_cannot_hold_is_refused(tmp_path: Path, capsys: Capture) -> None:
    saved(tmp_path / "old", wiring="hf")
    changed(tmp_path / "old", "model.layers.1.self_attn.o_proj.weight", 1e39)  # infinite in float32
    assert main(["convert", str(tmp_path / "old"), str(tmp_path / "new"), "--to", "paper", "--dtype", "float32"]) == 1
    assert "attention layer 1, as written in float32, gives NaN or infinity" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("was_there", [True, False])
def test_a_failed_write_leaves_nothing_behind(was_there: bool, tmp_path: Path, capsys: Capture) -> None:
    saved(tmp_path / "old", wiring="none")
    changed(tmp_path / "old", "model.layers.1.self_attn.o_proj.weight", 4e4)  # v2's is twice as large
    new = tmp_path / "new"
    if was_there:
        new.mkdir()
    assert main(["convert", str(tmp_path / "old"), str(new), "--to", "v2", "--dtype", "float16"]) == 1
    assert "beyond float16's range" in capsys.readouterr().err
    assert new.exists() == was_there
    assert not was_there or not list(new.iterdir())


@pytest.mark.parametrize("kind", ["link", "pipe", "device"])
def test_no_file_from_outside_the_checkpoint_is_copied(
    kind: str, tiny_checkpoint: Path, tmp_path: Path, capsys: Capture
) -> None:
    folder = tmp_path / "old"
    shutil.copytree(tiny_checkpoint, folder)
    (tmp_path / "id_rsa").write_text("secret")
    if kind == "pipe":
        os.mkfifo(folder / "vocab.json")
    else:
        (folder / "vocab.json").symlink_to(tmp_path / "id_rsa" if kind == "link" else "/dev/zero")
    assert main(["convert", str(folder), str(tmp_path / "new"), "--to", "paper"]) == 2
    says = "not a regular file" if kind == "pipe" else "'vocab.json' is a link that leads out of the folder"
    assert says in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_ctrl_c_leaves_nothing_behind(tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        assert (tmp_path / "new" / "model.safetensors").exists()
        raise KeyboardInterrupt

    monkeypatch.setattr("shutil.copyfileobj", interrupted)
    assert main(["convert", str(tiny_checkpoint), str(tmp_path / "new"), "--to", "paper"]) == 130
    assert not (tmp_path / "new").exists()


def test_a_failed_write_takes_away_the_folders_it_made(tmp_path: Path) -> None:
    saved(tmp_path / "old", wiring="none")
    changed(tmp_path / "old", "model.layers.1.self_attn.o_proj.weight", 4e4)
    (tmp_path / "there").mkdir()
    new = tmp_path / "there" / "not" / "yet" / "new"
    assert main(["convert", str(tmp_path / "old"), str(new), "--to", "v2", "--dtype", "float16"]) == 1
    assert list((tmp_path / "there").iterdir()) == []


def test_a_link_that_leads_nowhere(tmp_path: Path, capsys: Capture) -> None:
    saved(tmp_path / "old")
    (tmp_path / "new").symlink_to(tmp_path / "gone")
    assert main(["convert", str(tmp_path / "old"), str(tmp_path / "new"), "--to", "paper"]) == 2
    assert f"new: links to {tmp_path / 'gone'}, which does not exist; make that folder" in capsys.readouterr().err


def test_every_form_of_a_tokenizer_comes_along(tmp_path: Path) -> None:
    saved(tmp_path / "old")
    names = ("tokenizer.json", "tokenizer.model", "vocab.json", "merges.txt", "added_tokens.json")
    for name in (*names, "optimizer.pt"):
        (tmp_path / "old" / name).write_bytes(name.encode())
    assert main(["convert", str(tmp_path / "old"), str(tmp_path / "new"), "--to", "paper"]) == 0
    copied = {path.name: path.read_bytes() for path in (tmp_path / "new").iterdir()}
    assert copied.keys() == {*names, "config.json", "model.safetensors"}
    assert all(copied[name] == name.encode() for name in names)


@pytest.mark.parametrize(("one", "other", "last"), [("hf", "paper", "out"), ("none", "v2", "o"), ("paper", "hf", "o")])
def test_attention_has_the_names_of_the_module_of_its_wiring(one: str, other: str, last: str, tmp_path: Path) -> None:
    saved(tmp_path / "old", wiring=one)
    assert main(["convert", str(tmp_path / "old"), str(tmp_path / "new"), "--to", other]) == 0
    (stored,) = weights.headers(tmp_path / "new").values()
    projections = {name.split(".")[4] for name in stored if ".self_attn." in name and "_proj." in name}
    assert projections - {"lambda_proj"} == {"q_proj", "k_proj", "v_proj", f"{last}_proj"}


def test_another_epsilon_in_16_bits_is_rounded_and_says_so(tmp_path: Path, capsys: Capture) -> None:
    saved(tmp_path / "old", "bfloat16", wiring="hf", rms_norm_eps=1e-6)
    assert main(["convert", str(tmp_path / "old"), str(tmp_path / "new"), "--to", "paper"]) == 0
    report = REPORT.match(capsys.readouterr().out)
    assert report
    assert 1e-4 < float(report["written"]) < 8 * float(report["rounded"]) < 0.5


def test_what_rounding_does_not_explain_is_not_written(tmp_path: Path, capsys: Capture) -> None:
    saved(tmp_path / "old", wiring="paper", rms_norm_eps=1e-19)  # so small values are below float16's normal range
    arguments = ["convert", str(tmp_path / "old"), str(tmp_path / "new"), "--to", "hf", "--dtype"]
    assert main([*arguments, "float16"]) == 1
    assert "float16 cannot hold the converted weights; choose a --dtype with more range" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
    assert main([*arguments, "bfloat16"]) == 0


def test_the_other_weights_are_compared_as_written(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved(tmp_path / "old")
    save = weights.save

    def damaged(folder: Path, config: Any, params: Any, *rest: Any, **options: Any) -> None:
        norm = {"weight": 2 * to_numpy(params["model"]["norm"]["weight"])}
        save(folder, config, {**params, "model": {**params["model"], "norm": norm}}, *rest, **options)

    monkeypatch.setattr(weights, "save", damaged)
    assert main(["convert", str(tmp_path / "old"), str(tmp_path / "new"), "--to", "paper"]) == 1
    assert "model.norm.weight: changed, as written in float64, without being converted;" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_memory_is_for_layers_not_for_the_model(dtype: str, tmp_path: Path) -> None:
    sizes = {"hidden_size": 256, "head_dim": 32, "num_key_value_heads": 8, "num_hidden_layers": 12}
    config = small_config(wiring="none", intermediate_size=8, **sizes)
    refdiff.DiffLlamaForCausalLM.from_config(config).save_pretrained(tmp_path / "old", dtype=dtype)
    layer = 5 * 256 * 256 * 8  # bytes of v2's attention in float64
    main(["convert", str(tmp_path / "old"), str(tmp_path / "warm"), "--to", "v2"])  # what is imported is not counted
    tracemalloc.start()
    try:
        assert main(["convert", str(tmp_path / "old"), str(tmp_path / "new"), "--to", "v2"]) == 0
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 6 * layer
