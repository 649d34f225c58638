"""A finished run becomes a folder that loads by itself, and a card that says what is so."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from experiments import bundle

import refdiff
from refdiff.cli.parser import build_parser
from refdiff.training.train import Trainer

Start = Callable[..., Trainer]
SOURCES = [
    {
        "repo": "github:a/one", "commit": "0123456789abcdef", "pg_id": "17", "stories": 3,
        "rights": ["rights: Public domain."],
    },
    {"repo": "github:b/two", "commit": "fedcba9876543210", "pg_id": "23", "stories": 5},
]  # fmt: skip


@pytest.fixture
def run(tmp_path: Path, start: Start) -> Path:
    trainer = start(max_steps=4, evaluate_every=2)
    trainer.run()
    return trainer.out


def test_the_folder_loads_and_reaches_what_the_card_says(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "model"
    reached = bundle.bundle(run, out, SOURCES)
    assert sorted(p.name for p in out.iterdir()) == [
        "README.md", "chat_template.jinja", "config.json", "model.safetensors", "tokenizer.json",
        "tokenizer_config.json",
    ]  # fmt: skip
    model = refdiff.DiffLlamaForCausalLM.from_pretrained(out)
    assert model.dtype == "float16"
    trained = refdiff.DiffLlamaForCausalLM.from_pretrained(run / "step-000004")
    for name, value in refdiff.model.weights.flatten(trained.params).items():
        np.testing.assert_array_equal(refdiff.model.weights.flatten(model.params)[name], value.astype(np.float16))
    card = (out / "README.md").read_text(encoding="utf-8")
    assert f"**{reached['bits_per_byte']:.3f} bits per byte**" in card
    last = json.loads((run / "log.jsonl").read_text().splitlines()[-1])
    assert reached["bits_per_byte"] == pytest.approx(
        last["bits_per_byte"], rel=1e-3
    )  # the run's was of float32 weights
    assert f"| 4 | {last['loss']:.3f} | {last['validation']:.3f} |" in card
    assert f"{model.num_parameters():,} parameters" in card
    assert "| a/one | 0123456789ab | 3 | Public domain |" in card
    assert "| b/two | fedcba987654 | 5 | not stated |" in card


def test_the_command_on_the_card_makes_the_same_run(run: Path) -> None:
    trainer = Trainer.resume(run)
    settings = json.loads((run / "step-000004" / "training.json").read_text())["settings"]
    words = shlex.split(bundle.command(trainer.model.config, settings, "tales.txt").replace("\\\n", " "))
    args = build_parser().parse_args(words[1:])
    aliases = build_parser().commands()["train"].aliases
    assert not aliases.keys() & set(words), "former spellings"
    assert args.text == "tales.txt"
    assert {name: getattr(args, name) for name in settings} == settings
    for name in bundle._SIZES:
        assert getattr(args, name) == getattr(trainer.model.config, name)
    assert all(len(line) < 120 for line in bundle.command(trainer.model.config, settings, "t").splitlines())


def test_a_run_that_is_not_finished_or_too_large_is_refused(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bundle, "LIMIT", 1000)
    with pytest.raises(ValueError, match="more than 1,000"):
        bundle.bundle(run, tmp_path / "model", SOURCES)
    Trainer.resume(run, changes={"max_steps": 5})
    with pytest.raises(ValueError, match="has made 4 of 5 steps"):
        bundle.bundle(run, tmp_path / "model", SOURCES)


def test_as_a_command(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = tmp_path / "manifest.json"
    manifest.write_text(json.dumps(SOURCES))
    assert bundle.main([str(run), str(tmp_path / "model"), "--manifest", str(manifest), "--dtype", "bfloat16"]) == 0
    assert re.search(r"model: \d\.\d{4} bits per byte", capsys.readouterr().out)
    assert refdiff.DiffLlamaForCausalLM.from_pretrained(tmp_path / "model").dtype == "bfloat16"
