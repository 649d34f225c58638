"""`refdiff train` as a process: killed and resumed, and its errors."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

import refdiff
from refdiff.cli import main
from refdiff.cli.output_files import write_picture
from refdiff.cli.parser import build_parser
from refdiff.cli.train import MODEL_SIZES, SETTINGS
from refdiff.model.config import DiffLlamaConfig
from refdiff.training.settings import Settings
from refdiff.training.train import Trainer
from tests.cli.conftest import in_terminal
from tests.training.conftest import tale

SMALL = (
    *("--vocab-size", "270", "--hidden-size", "16", "--layers", "2", "--heads", "2", "--intermediate-size", "24"),
    *("--batch-size", "4", "--context", "16", "--warmup-steps", "2", "--validation", "0.1", "--save-every", "5"),
)


@pytest.fixture
def text(tmp_path: Path) -> Path:
    (tmp_path / "text.txt").write_text(tale(), encoding="utf-8")
    return tmp_path / "text.txt"


def lines_of(out: Path) -> list[str]:
    path = out / "log.jsonl"
    return path.read_text(encoding="utf-8").splitlines() if path.exists() else []


def lines(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in lines_of(out)]


def test_from_text_to_a_model(run: Any, text: Path, tmp_path: Path) -> None:
    options = ("--steps", "12", "--evaluate-every", "5", "--sample-every", "6", "--prompt", "the king")
    result = run("train", text, "-o", "out", *SMALL, *options)
    assert result.returncode == 0, result.stderr
    assert result.stdout.decode() == "out/step-000012\n"
    shown = result.stderr.decode()
    assert "parameters" in shown
    assert "bits per byte" in shown
    assert "\n  sample: the king" in shown
    records = lines(tmp_path / "out")
    assert [record["step"] for record in records] == list(range(1, 13))
    assert [record["step"] for record in records if "validation" in record] == [5, 10, 12]
    generated = run("generate", "-m", "out/step-000012", "-n", "3", "the king", "-q")
    assert generated.returncode == 0, generated.stderr


def test_a_terminal_sees_how_far_it_is(environment: dict[str, str], text: Path, tmp_path: Path) -> None:
    status, seen = in_terminal(environment, tmp_path, "train", text, "-o", "out", *SMALL, "--steps", "6")
    assert status == 0
    bars = re.findall(r"(\d+)/6 \[.*?(?:loss (\d\.\d+))?, +(\d+) tok/s\]", seen)
    assert bars, seen
    assert bars[-1][0] == "6"
    assert re.search(r"\[\d\d:\d\d<\d\d:\d\d, ", seen), "time gone and time to go"
    assert max(len(line) for line in re.split(r"[\r\n]", seen)) <= 80


@pytest.mark.slow
@pytest.mark.parametrize("wiring", ["hf", "v2"])
def test_killed_at_any_moment_and_resumed_it_ends_with_the_same_weights(
    run: Any, text: Path, tmp_path: Path, environment: dict[str, str], wiring: str
) -> None:
    options = (*SMALL, "--steps", "60", "--wiring", wiring, "--threads", "1", "-q")
    assert run("train", text, "-o", "whole", *options).returncode == 0
    command = [sys.executable, "-m", "refdiff", "train", "-o", "cut", "-q"]
    killed = 0
    for at in (8, 21, 38):
        rest = [str(text), *options] if at == 8 else ["--resume"]
        process = subprocess.Popen([*command, *rest], env=environment, cwd=tmp_path)
        while process.poll() is None and len(lines_of(tmp_path / "cut")) < at:
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        killed += process.wait() == -signal.SIGKILL
    assert killed == 3
    result = run("train", "-o", "cut", "--resume")
    assert result.returncode == 0, result.stderr
    for file in ("model.safetensors", "optimizer.safetensors", "config.json", "training.json", "tokenizer.json"):
        whole, cut = (tmp_path / name / "step-000060" / file for name in ("whole", "cut"))
        assert whole.read_bytes() == cut.read_bytes(), file
    losses = [[record["loss"] for record in lines(tmp_path / name)] for name in ("whole", "cut")]
    assert losses[0] == losses[1]
    assert not list((tmp_path / "cut").glob(".*"))


def test_a_config_file_and_flags_over_it(run: Any, text: Path, tmp_path: Path) -> None:
    refdiff.DiffLlamaConfig(
        vocab_size=300, hidden_size=24, intermediate_size=16, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, head_dim=4, rms_norm_eps=1e-3,
    ).save_pretrained(tmp_path)  # fmt: skip
    result = run(
        *("train", text, "-o", "out", "--config", "config.json", "--layers", "1", "--wiring", "paper", "--vocab-size"),
        *("265", "--steps", "1", "--context", "8", "-q"),
    )
    assert result.returncode == 0, result.stderr
    config = refdiff.DiffLlamaConfig.from_pretrained(tmp_path / "out/step-000001")
    assert (config.num_hidden_layers, config.wiring, config.vocab_size) == (1, "paper", 265)
    assert (config.hidden_size, config.num_key_value_heads, config.rms_norm_eps) == (24, 2, 1e-3)


def test_a_context_longer_than_the_config_file_allows(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = refdiff.DiffLlamaConfig(
        **sizes, vocab_size=265, num_key_value_heads=2, head_dim=8, max_position_embeddings=16
    )
    config.save_pretrained(tmp_path)
    command = ["train", "text.txt", "--config", "config.json", "--batch", "2", "--steps", "1", "-q"]
    for context, most in ((24, 24), (8, 16)):
        assert main([*command, "--context", str(context), "-o", str(context)]) == 0
        trained = refdiff.DiffLlamaConfig.from_pretrained(tmp_path / str(context) / "step-000001")
        assert trained.max_position_embeddings == most
    config.rope_parameters = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    config.save_pretrained(tmp_path)
    capsys.readouterr()
    assert main([*command, "--context", "24", "-o", "out"]) == 2
    assert (
        "--context: got 24, expected at most 16, the max_position_embeddings of config.json, on which its"
        in capsys.readouterr().err
    )


def test_what_does_not_fit_into_memory_is_refused_before_it_is_built(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    refdiff.DiffLlamaConfig(num_hidden_layers=5000).save_pretrained(tmp_path)
    assert main(["train", "text.txt", "-o", "out", "--config", "config.json", "--threads", "2"]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert re.search(r"memory: training takes at least 8\.06 TB, and .* are free; 5\.37 TB are for weights", said)
    assert re.search(
        r"--layers\) and 2\.69 TB for the tokens of a step \(--batch-size, --context, --accumulate\)", said
    )
    monkeypatch.setattr("refdiff.training.memory.available", lambda: 30_000_000)
    assert main(["train", "text.txt", "-o", "out", "--vocab-size", "262", "--batch", "64"]) == 2
    assert "and 30.0 MB are free" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert main(["train", "text.txt", "-o", "out", *SMALL, "--steps", "1", "-q"]) == 0


def test_each_problem_of_a_config_has_its_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.json").write_text('{"hidden_size": -3, "rms_norm_eps": "x"}')
    (tmp_path / "text.txt").write_text("some text")
    arguments = ["train", str(tmp_path / "text.txt"), "-o", str(tmp_path / "run")]
    assert main([*arguments, "--config", str(tmp_path / "config.json")]) == 2
    _, *problems = capsys.readouterr().err.splitlines()
    assert [problem.split(":")[0].split()[0] for problem in problems] == ["--hidden-size", "rms_norm_eps"]


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (("train", "-o", "out"), 2, "TEXT: got none, expected a UTF-8 file; or continue a run with --resume"),
        (("train", "none.txt", "-o", "out"), 2, "TEXT none.txt: no such file"),
        (("train", ".", "-o", "out"), 2, "TEXT .: got a folder, expected a UTF-8 file"),
        (
            ("train", os.devnull, "-o", "out"),
            2,
            "got a device or a pipe, which cannot be read twice, expected a UTF-8 file",
        ),
        (("train", "-", "-o", "out"), 2, "TEXT -: got standard input, expected a UTF-8 file, which is read twice"),
        (("train", "-o", "out", "--resume"), 2, "no checkpoint to resume"),
        (
            ("train", "text.txt", "-o", "empty.txt"),
            2,
            "error: -o empty.txt: got a file, expected the folder of the run",
        ),
        (("train", "-o", "empty.txt", "--resume"), 2, "empty.txt: no checkpoint to resume"),
        (("train", "text.txt", "-o", "out", "--heads", "3"), 2, "--heads: got 3, expected an even number"),
        (("train", "text.txt", "-o", "out", "--hidden-size", "33"), 2, "--hidden-size: got 33 numbers for 6 heads"),
        (
            ("train", "text.txt", "-o", "out", "--hidden-size", "36", "--heads", "4"),
            2,
            "--hidden-size, --heads: got 36 numbers for 4 heads, which are 9 for each, expected an even number",
        ),
        (
            ("train", "text.txt", "-o", "out", "--batch", "4", "--accumulate", "3"),
            2,
            "error: --batch: got 4, expected a multiple of --accumulate 3",
        ),
        (
            ("train", "text.txt", "-o", "out", "--vocab-size", "5000"),
            2,
            "error: --vocab-size: got 5000, expected at most ",
        ),
        (
            ("train", "text.txt", "-o", "out", "--vocab-size", "262", "--context", "9000"),
            2,
            "but a sequence needs 9000",
        ),
        (("train", "empty.txt", "-o", "out"), 2, "no text to learn from"),
        (("train", "line.txt", "-o", "out"), 2, "error: --vocab-size: got 2048, expected at most 2"),
        (("train", "text.txt", "-o", "out", "--rate", "0"), 2, "--rate: got 0, expected a number above 0"),
    ],
)
def test_errors_are_one_line(
    run: Any, text: Path, tmp_path: Path, arguments: tuple[str, ...], status: int, message: str
) -> None:
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "line.txt").write_text("once upon a time\n")
    result = run(*arguments)
    assert result.returncode == status
    assert result.stdout == b""
    last = result.stderr.decode().splitlines()[-1]
    assert message in last
    assert last.startswith("refdiff train: error: ")
    assert not (tmp_path / "out").exists()


def test_a_run_that_ended_before_its_first_checkpoint_is_begun_again(run: Any, text: Path, tmp_path: Path) -> None:
    files = ("corpus.json", "tokenizer.json", "tokenizer_config.json", "train.bin", "validation.bin")
    half = ("tokenizer.json", "train.bin", f".corpus.json.{'0a' * 8}.tmp")
    for folder, names in (("corpus", files), (".corpus-half", half)):
        (tmp_path / "out" / folder).mkdir(parents=True)
        for name in names:
            (tmp_path / "out" / folder / name).write_bytes(b"left")
    assert run("train", text, "-o", "out", *SMALL, "--steps", "1", "-q").returncode == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        *("corpus", "log.jsonl", "step-000000", "step-000001")
    ]


@pytest.mark.skipif(sys.platform == "win32", reason="has no such locks")
def test_two_processes_in_one_folder(
    run: Any, text: Path, tmp_path: Path, environment: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    """The second begins nothing and goes on with nothing while the first is there, however far that is."""
    why = f"{tmp_path / 'out'}: another process trains in this folder: wait until it ends, or name another folder\n"
    command = [sys.executable, "-m", "refdiff", "train", str(text), "-o", "out", *SMALL, "--steps", "100000", "-q"]
    process = subprocess.Popen(command, env=environment, cwd=tmp_path)
    try:
        for there in (".refdiff-train.lock", "log.jsonl"):
            while process.poll() is None and not (tmp_path / "out" / there).exists():
                time.sleep(0.002)
            for arguments in ((str(text), *SMALL), ("--resume",)):
                time.sleep(0.02)  # between the file and its lock
                assert main(["train", *arguments, "-o", str(tmp_path / "out")]) == 1
                assert capsys.readouterr().err == f"refdiff train: error: {why}"
        assert process.poll() is None
    finally:
        process.kill()
        process.wait()
    steps = [record["step"] for record in lines(tmp_path / "out")]
    assert steps == list(range(1, len(steps) + 1))
    result = run("train", "-o", "out", "--resume", "--steps", str(len(steps) + 1), "-q")  # the dead hold nothing
    assert result.returncode == 0, result.stderr
    assert not list((tmp_path / "out").glob(".*"))


@pytest.mark.parametrize(
    ("files", "text", "message"),
    [
        (("corpus/tales.txt", "corpus/notes.txt"), "corpus/tales.txt", "TEXT corpus/tales.txt: lies in corpus, where"),
        (("tales.txt", "corpus/notes.txt"), "tales.txt", "corpus exists and is not a run's; move it, or"),
        (("tales.txt", "corpus"), "tales.txt", "corpus exists and is not a run's"),
        (("tales.txt", "corpus/train.bin"), "tales.txt", "corpus exists and is not a run's"),
        (("tales.txt", "log.jsonl"), "tales.txt", "log.jsonl exists and is not a run's"),
        (("tales.txt", "notes.txt"), "tales.txt", "-o .: got a folder with .corpus-mine in it, expected a new or"),
    ],
)
def test_files_of_others_are_left_alone(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    files: tuple[str, ...],
    text: str,
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in (*files, ".corpus-mine/notes.txt"):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_text(tale(), encoding="utf-8")
    before = sorted(tmp_path.rglob("*"))
    assert main(["train", text, "-o", ".", *SMALL, "--steps", "1", "-q"]) == 2
    assert message in capsys.readouterr().err
    assert sorted(tmp_path.rglob("*")) == before


def test_a_hidden_folder_of_others_is_left_alone(run: Any, text: Path, tmp_path: Path) -> None:
    assert run("train", text, "-o", "out", *SMALL, "--steps", "1", "-q").returncode == 0
    for path in (tmp_path / "out").glob("step-*"):
        shutil.rmtree(path)
    (tmp_path / "out" / ".corpus-mine").mkdir()
    (tmp_path / "out" / ".corpus-mine" / "notes.txt").write_text("mine")
    again = run("train", text, "-o", "out", *SMALL, "--steps", "1", "-q")
    assert again.returncode == 2
    line = "out/log.jsonl is of a run without checkpoints; delete it to train anew, or name another folder"
    assert line in again.stderr.decode()
    resumed = run("train", "-o", "out", "--resume", "-q").stderr.decode()
    assert "out: no checkpoint to resume (no folder step-…); train without --resume in a new folder" in resumed
    (tmp_path / "out" / "log.jsonl").unlink()
    assert run("train", text, "-o", "out", *SMALL, "--steps", "1", "-q").returncode == 0
    assert (tmp_path / "out" / ".corpus-mine" / "notes.txt").read_text() == "mine"


def test_a_log_gets_a_line_of_progress_now_and_then(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("refdiff.cli.train.REPORTED_EVERY", 0)
    command = ["train", str(text), "-o", str(tmp_path / "out"), *SMALL, "--steps", "3", "--sample-every", "0"]
    assert main(command) == 0
    lines = [line for line in capsys.readouterr().err.splitlines() if " min left" in line]
    assert [line.split(":")[0] for line in lines] == ["step 1 of 3", "step 2 of 3"]
    assert re.fullmatch(r"step 2 of 3: loss \d+\.\d{3}, \d+ tok/s, \d+ min left", lines[1])


def test_the_options_of_a_run_may_be_typed_again_to_resume_it(run: Any, text: Path, tmp_path: Path) -> None:
    command = ("train", text, "-o", "out", *SMALL, "-q")
    assert run(*command, "--steps", "1").returncode == 0
    assert run(*command, "--steps", "2", "--resume").stdout == b"out/step-000002\n"
    other = ("--seed", "1", "--wiring", "v2", "--heads", "4", "--validation", "0.2", "--max-steps", "3")
    done = run(*command, *other, "--resume")
    assert (done.returncode, done.stdout) == (2, b"")
    others = {word.strip(",") for word in done.stderr.decode().split("leave out ")[1].split()}
    assert others == {"--seed", "--wiring", "--heads", "--validation"}
    (tmp_path / "other.txt").write_text("another")
    assert b"leave out TEXT\n" in run("train", "other.txt", "-o", "out", "--resume").stderr


def test_a_size_of_the_config_is_not_called_an_option_that_was_typed(run: Any, text: Path) -> None:
    config = str(Path(refdiff.__file__).parent / "bundled" / "config.json")
    done = run("train", text, "-o", "out", "--heads", "2", "--config", config)
    assert b"--kv-heads (of bundled/config.json): got 6, expected a divisor of --heads 2" in done.stderr


def test_a_folder_with_a_run_in_it_is_not_written_over(run: Any, text: Path) -> None:
    options = (*SMALL, "--steps", "1", "-q")
    assert run("train", text, "-o", "out", *options).returncode == 0
    result = run("train", text, "-o", "out", *options)
    assert result.returncode == 2
    assert b"-o out: has a run already; continue it with --resume" in result.stderr


def test_a_finished_run_that_is_resumed_says_so(
    run: Any, text: Path, tmp_path: Path, environment: dict[str, str]
) -> None:
    assert run("train", text, "-o", "out", *SMALL, "--max-steps", "3").returncode == 0
    before = lines_of(tmp_path / "out")
    done = run("train", "-o", "out", "--resume")
    assert (done.returncode, done.stdout) == (0, b"out/step-000003\n")
    said = done.stderr.decode().splitlines()
    assert said == ["refdiff train: the run is at step 3 of 3 already; raise --max-steps to continue it"]
    assert run("train", "-o", "out", "--resume", "-q").stderr == done.stderr
    status, seen = in_terminal(environment, tmp_path, "train", "-o", "out", "--resume")
    assert (status, seen.split()) == (0, said[0].split())
    assert lines_of(tmp_path / "out") == before


def test_resumed_with_flags_that_may_change(run: Any, text: Path, tmp_path: Path) -> None:
    assert run("train", text, "-o", "out", *SMALL, "--steps", "2", "--rate", "0.002", "-q").returncode == 0
    result = run("train", "-o", "out", "--resume", "--steps", "3", "--rate", "1e-3", "-q")  # the flag's default
    assert result.stdout == b"out/step-000003\n", result.stderr
    about = json.loads((tmp_path / "out/step-000003/training.json").read_text())
    assert about["changes"] == [{"step": 2, "steps": [2, 3], "rate": [0.002, 0.001]}]


def test_numbers_that_end_stop_the_run_and_are_located(run: Any, text: Path, tmp_path: Path) -> None:
    result = run("train", text, "-o", "out", *SMALL, "--steps", "30", "--rate", "1e30", "--warmup", "0", "-q")
    assert result.returncode == 1
    assert b"refdiff train: error: step " in result.stderr
    assert b"; resume step-000000 with --resume and a lower learning rate" in result.stderr
    assert (tmp_path / "out" / "step-000000" / "model.safetensors").exists()


def test_a_picture_of_the_run(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Drawn at every validation; one that cannot be written stops nothing, and an ending not known begins nothing."""
    monkeypatch.chdir(tmp_path)
    steps = []

    def write(figure: Any, path: Path) -> None:
        steps.append(len(figure.axes[0].lines[0].get_xdata()))
        if len(steps) == 1:
            raise OSError(28, "No space left on device")
        if len(steps) == 2:
            raise ValueError("no picture of that")
        write_picture(figure, path)

    monkeypatch.setattr("refdiff.cli.train.write_picture", write)
    options = [*SMALL, "--steps", "5", "--evaluate-every", "2", "-q", "--plot"]
    assert main(["train", str(text), "-o", "out", *options, "a.pdf"]) == 2
    assert not (tmp_path / "out").exists()
    capsys.readouterr()
    assert main(["train", str(text), "-o", "out", *options, "a.svg"]) == 0
    out, err = capsys.readouterr()
    assert out == "out/step-000005\n"
    assert err.splitlines() == [
        f"refdiff: warning: no picture: {why}" for why in ("No space left on device", "no picture of that")
    ]
    assert steps == [2, 4, 5]
    assert b"<svg" in (tmp_path / "a.svg").read_bytes()
    assert main(["train", "-o", "out", "--resume", "-q", "--plot", "b.svg"]) == 0  # no step is left
    assert steps[3:] == [5]
    assert b"<svg" in (tmp_path / "b.svg").read_bytes()


def test_settings_and_their_defaults() -> None:
    args = build_parser().parse_args(["train", "text.txt", "-o", "out"])
    for entry in fields(Settings):
        assert getattr(args, entry.name) == entry.default, entry.name
    assert set(SETTINGS) <= {entry.name for entry in fields(Settings)}


def test_sizes_are_fields_of_the_config() -> None:
    assert set(MODEL_SIZES) <= {entry.name for entry in fields(DiffLlamaConfig)}


def test_ctrl_c_saves_a_checkpoint_that_resumes_bit_for_bit(
    run: Any, text: Path, tmp_path: Path, environment: dict[str, str]
) -> None:
    options = (*SMALL, "--max-steps", "60", "--save-every", "0", "--threads", "1")
    assert run("train", text, "-o", "whole", *options, "-q").returncode == 0
    process = subprocess.Popen(
        [sys.executable, "-m", "refdiff", "train", str(text), "-o", "cut", *options],
        env=environment, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    while process.poll() is None and len(lines_of(tmp_path / "cut")) < 5:
        time.sleep(0.002)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    made = lines(tmp_path / "cut")[-1]["step"]
    assert 5 <= made < 60
    assert out.decode() == f"cut/step-{made:06d}\n"
    assert f"stopped at step {made}; refdiff train -o cut --resume continues there" in err.decode()
    assert b"Traceback" not in err
    assert run("train", "-o", "cut", "--resume", "-q").returncode == 0
    whole, cut = (tmp_path / name / "step-000060" / "model.safetensors" for name in ("whole", "cut"))
    assert whole.read_bytes() == cut.read_bytes()


def test_nothing_is_left_of_a_run_that_made_no_step(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)

    def interrupted(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(refdiff.DiffLlamaForCausalLM, "loss_and_grad", interrupted)
        assert main(["train", "text.txt", "-o", "out", *SMALL, "-q"]) == 130
    assert "stopped at step 0; nothing was written" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert main(["train", "text.txt", "-o", "out", *SMALL, "--max-steps", "1", "-q"]) == 0


def test_a_second_ctrl_c_stops_at_once(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    step = Trainer._one_step

    def pressed(self: Trainer) -> dict[str, Any]:
        if self.step == 3:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
        return step(self)

    monkeypatch.setattr(Trainer, "_one_step", pressed)
    assert main(["train", "text.txt", "-o", "out", *SMALL, "--save-every", "2", "-q"]) == 130
    assert "stopped at step 3; --resume continues at step 2" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_as_many_checkpoints_stay_as_are_to_be_kept(text: Path, tmp_path: Path) -> None:
    options = [*SMALL, "--save-every", "1", "--max-steps", "5", "-q", "-o"]
    for extra, kept in (([], [4, 5]), (["--keep", "1"], [5]), (["--keep", "4"], [2, 3, 4, 5])):
        out = tmp_path / str(len(kept))
        assert main(["train", str(text), *options, str(out), *extra]) == 0
        assert sorted(int(path.name[5:]) for path in out.glob("step-*")) == kept


def test_a_run_is_named_in_place_of_its_last_checkpoint(
    text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    assert main(["train", str(text), "-o", str(out), *SMALL, "--max-steps", "2", "-q"]) == 0
    capsys.readouterr()
    texts = []
    for model in (out, out / "step-000002"):
        assert main(["generate", "-m", str(model), "-q", "-n", "5", "the king"]) == 0
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1] != ""
    assert main(["inspect", str(out)]) == 0
