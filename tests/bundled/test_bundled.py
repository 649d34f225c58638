"""The package's own model: it is what its card says, and the first command of the README works with no network."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from experiments import bundle

import refdiff
from refdiff import bundled
from refdiff.cli.parser import build_parser
from refdiff.training.data import Corpus
from refdiff.training.evaluate import evaluate
from refdiff.training.settings import Settings

CARD = (bundled.FOLDER / "README.md").read_text(encoding="utf-8")
DATA = Path(__file__).parents[2] / "notebooks" / "data"
MEASURED = "e5175702e69c5fc5beff3e271f43dc1e43ff6d2ef0dba31c0eb399c18d0a0c60"
"""sha256 of the weights whose bits per byte are in the card."""
TEXT = Path(refdiff.__file__).parents[2] / "shared" / "data" / "fairy_en.txt"
OFFLINE = {**os.environ, "HF_HUB_OFFLINE": "1", "https_proxy": "http://127.0.0.1:9", "http_proxy": "http://127.0.0.1:9"}


def test_recorded_measurements_are_of_the_bundled_weights() -> None:
    """The numbers beside the baseline and beside torch, and the card's: another model needs them all anew."""
    weights = hashlib.sha256((bundled.FOLDER / "model.safetensors").read_bytes()).hexdigest()
    assert weights == MEASURED
    curve = {int(step): float(loss) for step, loss in re.findall(r"\| (\d+) \| \S+ \| (\S+) \| \S+ \|", CARD)}
    ours = json.loads((DATA / "baseline.json").read_text(encoding="utf-8"))["differential"]
    assert dict(ours["validation"]) == curve
    assert f"**{ours['reached']['bits_per_byte']:.3f} bits per byte**" in CARD
    assert ours["reached"]["validation"] == pytest.approx(curve[max(curve)], abs=5e-4)
    rows = [json.loads(line) for line in (DATA / "bundled_by_torch.jsonl").read_text(encoding="utf-8").splitlines()]
    assert {row["step"]: row["refdiff"] for row in rows} == {row["step"]: curve[row["step"]] for row in rows}
    assert rows[-1]["step"] == max(curve)
    assert max(abs(row["refdiff"] / row["torch"] - 1) for row in rows) < 0.02


def _run_on_the_card() -> tuple[str, dict[str, object]]:
    """The command of the run and the settings that it gives."""
    command = CARD.split("```sh\n")[1].split("\npython")[0]
    args = build_parser().parse_args(shlex.split(command.replace("\\\n", " "))[1:])
    return command, {field.name: getattr(args, field.name) for field in fields(Settings)}


def test_the_command_on_the_card_is_written_as_that_of_every_bundled_run() -> None:
    command, settings = _run_on_the_card()
    config = refdiff.DiffLlamaForCausalLM.from_pretrained("bundled").config
    assert bundle.command(config, settings, "fairy_en.txt") == command


@pytest.mark.slow
@pytest.mark.skipif(not TEXT.exists(), reason="the text is not in the package; it is looked for in ../shared/data")
def test_the_card_is_what_is_measured_anew(tmp_path: Path) -> None:
    """Bits per byte on a part that a tokenizer trained anew has not seen either; all but the curve is written anew."""
    corpus = Corpus.from_text(TEXT, tmp_path / "corpus", vocab_size=2048)
    assert (corpus.folder / "tokenizer.json").read_bytes() == (bundled.FOLDER / "tokenizer.json").read_bytes()
    assert len(corpus.tokens["validation"]) == 56_176
    model = refdiff.DiffLlamaForCausalLM.from_pretrained("bundled", dtype="float32")
    found = evaluate(model, corpus, 512, 8)
    assert found["bits_per_byte"] <= 1.5
    command, settings = _run_on_the_card()
    curve = [map(float, row) for row in re.findall(r"\| (\d+) \| (\S+) \| (\S+) \| (\S+) \|", CARD)]
    log = [dict(zip(("step", "loss", "validation", "bits_per_byte"), row, strict=True)) for row in curve]
    log = [{**record, "step": int(record["step"])} for record in log]
    manifest = json.loads(TEXT.with_name("manifest_en.json").read_text(encoding="utf-8"))
    assert bundle._card(model, corpus, settings, command, log, manifest, found, "float16") == CARD


@pytest.mark.parametrize(
    "sentence",
    [
        "Once upon a time there was a king who had three sons",
        "The old woman went into the forest and found a little house",
        "The princess was so beautiful that all the people loved her",
        "Then the fox said to the wolf, you must go with me to the castle",
    ],
)
def test_a_sentence_of_a_tale_is_likelier_than_its_words_in_another_order(sentence: str) -> None:
    model = refdiff.DiffLlamaForCausalLM.from_pretrained("bundled")
    tokenizer = refdiff.Tokenizer.from_pretrained("bundled")

    def nats(words: Sequence[str]) -> float:
        ids = tokenizer(" ".join(words) + ".", return_tensors="np")["input_ids"]
        return float(model(ids, labels=ids).loss) * (ids.shape[1] - 1)

    words, rng = sentence.split(), np.random.default_rng(0)
    assert nats(words) < 0.7 * min(nats(rng.permutation(words).tolist()) for _ in range(10))


def test_the_first_command_needs_nothing(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "refdiff", "generate", "Once upon a time", "-n", "8", "--seed", "1"],
        cwd=tmp_path,
        env={**OFFLINE, "PYTHONPATH": str(Path(refdiff.__file__).parents[1]), "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip()
