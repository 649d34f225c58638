"""`refdiff train`: what it writes, resumes, shows and refuses; killed as a process, and interrupted."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

import refdiff
from refdiff.cli.parser import build_parser
from refdiff.cli.train import MODEL_SIZES, SETTINGS
from refdiff.model.config import DiffLlamaConfig
from refdiff.training.checkpoint import locked
from refdiff.training.settings import Settings
from refdiff.training.train import Trainer
from tests.training.conftest import tale

from .conftest import Cli, Done, Run, in_terminal

SMALL = (
    *("--vocab-size", "270", "--hidden-size", "16", "--layers", "2", "--heads", "2", "--intermediate-size", "24"),
    *("--batch-size", "4", "--context", "16", "--warmup-steps", "2", "--validation", "0.1", "--save-every", "5"),
)
Train = Callable[..., Done]


@pytest.fixture
def text(here: Path) -> Path:
    (here / "text.txt").write_text(tale(), encoding="utf-8")
    return here / "text.txt"


@pytest.fixture
def train(text: Path, cli: Cli) -> Train:
    """Train on text.txt in the folder out; or resume that."""

    def train(*options: object, out: str = "out", resume: bool = False) -> Done:
        how = ["--resume"] if resume else ["text.txt", *SMALL]
        return cli("train", "-o", out, *how, *options)

    return train


def lines_of(out: Path) -> list[str]:
    path = out / "log.jsonl"
    return path.read_text(encoding="utf-8").splitlines() if path.exists() else []


def lines(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in lines_of(out)]


def test_the_vocabulary_of_a_short_text_is_smaller(cli: Cli, text: Path) -> None:
    words = text.read_text(encoding="utf-8").replace("\n", " ").replace("<|endoftext|>", "")
    text.write_text(words[:3000].replace(".", "") + ".\n", encoding="utf-8")
    done = cli("train", "text.txt", "-o", "run", "--max-steps", "1", "--batch-size", "1", "-q")
    assert done == (0, "run/step-000001\n", "")
    assert 257 < refdiff.DiffLlamaConfig.from_pretrained("run").vocab_size < 2048
    assert cli("generate", "-m", "run", "-n", "2", "-q", "king").status == 0


def test_a_text_that_is_too_short_says_so(cli: Cli, text: Path) -> None:
    text.write_text("once upon a time\n" * 40, encoding="utf-8")
    done = cli("train", "text.txt", "-o", "run", "--max-steps", "1")
    assert done.status == 2
    assert re.search(r"--context: got 256, expected at most \d+, the tokens of the train part of the text; ", done.err)


def test_from_text_to_a_model(train: Train, here: Path, cli: Cli) -> None:
    done = train("--steps", "12", "--evaluate-every", "5", "--sample-every", "6", "--prompt", "the king")
    assert (done.status, done.out) == (0, "out/step-000012\n"), done.err
    assert all(part in done.err for part in ("parameters", "bits per byte", "\n  sample: the king"))
    assert re.search(r"^[\d,]+ parameters; [\d,]+ tokens to train on, [\d,]+ held out; step 0 of 12$", done.err, re.M)
    records = lines(here / "out")
    assert [record["step"] for record in records] == list(range(1, 13))
    assert [record["step"] for record in records if "validation" in record] == [5, 10, 12]
    # the folder of a run stands for its last checkpoint
    texts = [cli("generate", "-m", m, "-n", "5", "the king", "-q") for m in ("out", "out/step-000012")]
    assert texts[0].status == 0
    assert texts[0].out == texts[1].out != ""
    assert cli("inspect", "out").status == 0
    again = train("-q")
    assert again.status == 2
    assert "-o out: has a run already; continue it with --resume" in again.err


# The command itself, but that it makes no more than ten steps after the one at which it is to be killed.
HELD = """
import sys, time
from refdiff.cli import main
from refdiff.training.train import Trainer

def held(self, step=Trainer._one_step):
    while self.step > int(sys.argv[1]) + 10:
        time.sleep(1)
    return step(self)

Trainer._one_step = held
sys.exit(main(sys.argv[2:]))
"""


def test_a_run_that_was_killed_before_its_first_checkpoint_is_started(
    train: Train, cli: Cli, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ("-q", "--prompt", "-- the", "-s", "3", "--variant", "v2", "--threads", "1")
    assert train("--steps", "2", *options, out="whole").status == 0
    for name, where in (("steps", "checkpoint.save"), ("corpus", "data.Corpus.from_text")):
        if (child := os.fork()) == 0:
            monkeypatch.setattr(f"refdiff.training.{where}", lambda *_, **__: os._exit(9))
            train("--steps", "9", *options, out=name)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.wait4(child, 0)[1]) == 9
        monkeypatch.chdir(here.parent)
        done = cli("train", "-o", here / name, "--resume", "--steps", "2")
        monkeypatch.chdir(here)
        assert done.status == 0, done.err
        assert "the run was killed before its first checkpoint; it starts again" in done.err
        whole, again = (here / run / "step-000002" / "model.safetensors" for run in ("whole", name))
        assert whole.read_bytes() == again.read_bytes()
        assert len(lines(here / name)) == 2
    assert "nothing: no such folder; train without --resume" in cli("train", "-o", "nothing", "--resume").err


@pytest.mark.slow
def test_killed_at_any_moment_and_resumed_it_ends_with_the_same_weights(
    run: Run, text: Path, here: Path, environment: dict[str, str]
) -> None:
    options = (*SMALL, "--steps", "60", "--wiring", "v2", "--threads", "1", "-q")
    assert run("train", text, "-o", "whole", *options).returncode == 0
    killed = 0
    for at in (8, 21, 38):
        command = [sys.executable, "-c", HELD, str(at), "train", "-o", "cut", "-q"]
        rest = [str(text), *options] if at == 8 else ["--resume"]
        process = subprocess.Popen([*command, *rest], env=environment)
        while process.poll() is None and len(lines_of(here / "cut")) < at:
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        killed += process.wait() == -signal.SIGKILL
    assert killed == 3
    result = run("train", "-o", "cut", "--resume")
    assert result.returncode == 0, result.stderr
    for file in ("model.safetensors", "optimizer.safetensors", "config.json", "training.json", "tokenizer.json"):
        whole, cut = (here / name / "step-000060" / file for name in ("whole", "cut"))
        assert whole.read_bytes() == cut.read_bytes(), file
    losses = [[record["loss"] for record in lines(here / name)] for name in ("whole", "cut")]
    assert losses[0] == losses[1]
    assert not list((here / "cut").glob(".*"))


def test_a_config_file_and_flags_over_it(text: Path, here: Path, cli: Cli) -> None:
    config = refdiff.DiffLlamaConfig(
        vocab_size=265, hidden_size=24, intermediate_size=16, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, head_dim=4, rms_norm_eps=1e-3, max_position_embeddings=16,
    )  # fmt: skip
    config.save_pretrained(here)
    command = ("train", "text.txt", "--config", "config.json", "--batch", "2", "--steps", "1", "-q")
    flags = ("--layers", "1", "--variant", "paper", "--vocab-size", "267", "--context", "24", "-o", "new")
    assert cli(*command, *flags).status == 0
    trained = refdiff.DiffLlamaConfig.from_pretrained(here / "new" / "step-000001")
    assert (trained.num_hidden_layers, trained.variant, trained.vocab_size) == (1, "paper", 267)
    assert (trained.hidden_size, trained.num_key_value_heads, trained.rms_norm_eps) == (24, 2, 1e-3)
    assert trained.max_position_embeddings == 24, "a longer context than the file allows is put into the new one"
    config.rope_parameters = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    config.save_pretrained(here)
    done = cli(*command, "--context", "24", "-o", "out")
    assert done.status == 2
    said = "--context: got 24, expected at most 16, the max_position_embeddings of config.json, on which its"
    assert said in done.err
    (here / "config.json").write_text('{"hidden_size": -3, "rms_norm_eps": "x"}')
    done = cli(*command, "-o", "out")
    assert done.status == 2
    assert [line.split(":")[0].split()[0] for line in done.err.splitlines()[1:]] == ["--hidden-size", "rms_norm_eps"]


def test_a_folder_in_which_another_process_trains(train: Train, here: Path) -> None:
    why = "another process or thread trains in this folder: wait until it ends, or name another folder"
    with locked(here / "out"):
        for resume in (False, True):
            assert train(resume=resume) == (1, "", f"refdiff train: error: out: {why}\n")
    assert train("--max-steps", "1", "-q").status == 0


def test_a_checkpoint_that_was_being_replaced_is_resumed(train: Train, here: Path) -> None:
    assert train("--max-steps", "1", "-q").status == 0
    shutil.rmtree(here / "out" / "step-000000")
    (here / "out" / "step-000001").rename(here / "out" / ".step-000001-replaced")  # killed there
    assert train("--max-steps", "2", "-q", resume=True).out.strip() == str(Path("out", "step-000002"))


@pytest.mark.parametrize(
    ("files", "text", "message"),
    [
        (("corpus/tales.txt", "corpus/notes.txt"), "corpus/tales.txt", "TEXT corpus/tales.txt: lies in corpus, where"),
        (("tales.txt", "corpus/notes.txt"), "tales.txt", "corpus exists and is not a run's; move it, or"),
        (("tales.txt", "log.jsonl"), "tales.txt", "log.jsonl exists and is not a run's"),
        (("tales.txt", "notes.txt"), "tales.txt", "-o .: got a folder with .corpus-mine in it, expected a new or"),
    ],
)
def test_files_of_others_are_left_alone(here: Path, cli: Cli, files: tuple[str, ...], text: str, message: str) -> None:
    for name in (*files, ".corpus-mine/notes.txt"):
        (here / name).parent.mkdir(exist_ok=True)
        (here / name).write_text(tale(), encoding="utf-8")
    before = sorted(here.rglob("*"))
    done = cli("train", text, "-o", ".", *SMALL, "--steps", "1", "-q")
    assert done.status == 2
    assert message in done.err
    assert sorted(here.rglob("*")) == before


def test_the_options_of_a_resumed_run(
    train: Train, cli: Cli, text: Path, here: Path, environment: dict[str, str]
) -> None:
    """They may be typed again; some may change; others are refused by name; and a finished run says that it is."""
    assert train("--steps", "1", "--rate", "0.002", "-q").status == 0
    again = ("train", "text.txt", "-o", "out", *SMALL, "-q", "--resume")
    assert cli(*again, "--steps", "2").out == "out/step-000002\n"
    other = ("--seed", "1", "--variant", "v2", "--heads", "4", "--validation", "0.2", "--max-steps", "3")
    status, out, err = cli(*again, *other)
    assert (status, out) == (2, "")
    others = {word.strip(",") for word in err.split("leave out ")[1].split()}
    assert others == {"--seed", "--variant", "--heads", "--validation"}
    (here / "other.txt").write_text("another")
    assert "leave out TEXT\n" in cli("train", "other.txt", "-o", "out", "--resume").err
    assert train("--steps", "3", "--rate", "1e-3", "-q", resume=True).out == "out/step-000003\n"  # the flag's default
    about = json.loads((here / "out/step-000003/training.json").read_text())
    assert about["changes"][-1] == {"step": 2, "max_steps": [2, 3], "learning_rate": [0.002, 0.001]}
    before = lines_of(here / "out")
    said = "refdiff train: the run is at step 3 of 3 already; raise --max-steps to continue it\n"
    for quiet in ([], ["-q"]):
        assert train(*quiet, resume=True) == (0, "out/step-000003\n", said)
    status, seen = in_terminal(environment, here, "train", "-o", "out", "--resume")
    assert (status, seen.split()) == (0, said.split())
    assert lines_of(here / "out") == before


def test_settings_sizes_and_their_defaults() -> None:
    args = build_parser().parse_args(["train", "text.txt", "-o", "out"])
    for entry in fields(Settings):
        assert getattr(args, entry.name) == entry.default, entry.name
    assert set(SETTINGS) <= {entry.name for entry in fields(Settings)}
    assert set(MODEL_SIZES) <= {entry.name for entry in fields(DiffLlamaConfig)}


def test_nothing_is_left_of_a_run_that_made_no_step(train: Train, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(refdiff.DiffLlamaForCausalLM, "loss_and_grad", interrupted)
        done = train("-q")
    assert done.status == 130
    assert "stopped at step 0; nothing was written" in done.err
    assert not (here / "out").exists()
    assert train("--max-steps", "1", "-q").status == 0


@pytest.mark.parametrize(
    ("presses", "out", "said"),
    [
        (1, "out/step-000004\n", "stopped at step 4; refdiff train -o out --resume continues there"),
        (2, "", "stopped at step 3; --resume continues at step 3"),
    ],
)
def test_ctrl_c_saves_a_checkpoint_and_a_second_one_stops_at_once(
    presses: int, out: str, said: str, train: Train, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = Trainer._one_step

    def pressed(self: Trainer) -> dict[str, Any]:
        for _ in range(presses if self.step == 3 else 0):
            os.kill(os.getpid(), signal.SIGINT)
        return step(self)

    monkeypatch.setattr(Trainer, "_one_step", pressed)
    done = train("--save-every", "3", "--keep", "1", "-q")
    assert (done.status, done.out) == (130, out)
    assert done.err.splitlines()[-2:] == [f"refdiff train: {said}", "refdiff: interrupted"]
    assert [path.name for path in (here / "out").glob("step-*")] == [f"step-00000{5 - presses}"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
