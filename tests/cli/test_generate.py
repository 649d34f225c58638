"""`refdiff generate`, called in this process: where the prompt comes from, what comes out, what is refused."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest

import refdiff
from refdiff.cli import main
from refdiff.cli.transcript import Transcript

Capture = pytest.CaptureFixture[str]


def _stdin(monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))


def test_text_alone_on_standard_output_and_statistics_on_standard_error(reciting: Path, capsys: Capture) -> None:
    assert main(["generate", "-m", str(reciting), "h"]) == 0
    out, err = capsys.readouterr()
    assert out == "éあ😀!\n"
    lines = err.splitlines()
    assert lines[1].split()[:3] == ["prompt", "2", "tokens"]
    assert lines[2].split()[:3] == ["generated", "11", "tokens"]
    assert "tok/s" in lines[1]
    assert "tok/s" in lines[2]
    assert lines[3].startswith("finish: eos; peak memory: ")


def test_quiet(reciting: Path, capsys: Capture) -> None:
    assert main(["generate", "-q", "-m", str(reciting), "h"]) == 0
    assert capsys.readouterr() == ("éあ😀!\n", "")


@pytest.mark.parametrize("arguments", [["-p", "h"], ["-"], ["-f", "prompt.txt"], ["-f", "-"], ["--", "h"]])
def test_where_the_prompt_comes_from(
    arguments: list[str], reciting: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prompt.txt").write_bytes(b"h\r\n")
    _stdin(monkeypatch, b"\xef\xbb\xbfh\n")
    assert main(["generate", "-q", "-m", str(reciting), *arguments]) == 0
    assert capsys.readouterr().out == "éあ😀!\n"


def test_json_is_one_object(reciting: Path, capsys: Capture) -> None:
    assert main(["generate", "--json", "-m", str(reciting), "-s", "9", "h"]) == 0
    out, err = capsys.readouterr()
    row = json.loads(out)
    assert err  # statistics for people as well
    assert out.count("\n") == 1
    assert row["text"] == "éあ😀!"
    assert row["prompt"] == "h"
    assert row["model"] == str(reciting)
    assert (row["finish_reason"], row["prompt_tokens"], row["generated_tokens"], row["seed"]) == ("eos", 2, 11, 9)
    assert row["prompt_tokens_per_second"] > 0
    assert row["generated_tokens_per_second"] > 0
    assert row["peak_memory_bytes"] > 1_000_000


@pytest.mark.parametrize("how", [[], ["--no-stream"], ["--json"]])
def test_echo(how: list[str], reciting: Path, capsys: Capture) -> None:
    assert main(["generate", "-q", "--echo", *how, "-m", str(reciting), "h"]) == 0
    out = capsys.readouterr().out
    assert (json.loads(out)["text"] if how == ["--json"] else out.removesuffix("\n")) == "héあ😀!"


@pytest.mark.parametrize(
    ("arguments", "text", "reason"),
    [
        (["-n", "2"], "é", "length"),
        (["-n", "3"], "é", "length"),
        (["-n", "5"], "éあ", "length"),
        (["--ignore-eos", "-n", "15"], "éあ😀!hé", "length"),
        (["--stop", "😀"], "éあ", "stop"),
        (["--stop", "zz", "--stop", "あ😀", "--stop", "!"], "é", "stop"),
        (["--ignore-eos", "--stop", "!h"], "éあ😀", "stop"),
        (["--num-beams", "3"], "éあ😀!", "eos"),
        (["-n", "0"], "éあ😀!", "eos"),
        (["--max-tokens", "11"], "éあ😀!", "eos"),
        (["--no-repeat-ngram-size", "1", "--ignore-eos", "-n", "11"], "éあ😀!", "length"),
    ],
)
@pytest.mark.parametrize("streamed", [True, False])
def test_where_the_text_ends(
    arguments: list[str], text: str, reason: str, streamed: bool, reciting: Path, capsys: Capture
) -> None:
    how = [] if streamed else ["--no-stream"]
    assert main(["generate", *how, "-m", str(reciting), *arguments, "h"]) == 0
    out, err = capsys.readouterr()
    assert out == text + "\n"
    assert f"finish: {reason};" in err


def test_sampling_with_a_seed_is_repeatable_and_says_its_seed(tiny_checkpoint: Path, capsys: Capture) -> None:
    def text(*arguments: str) -> dict[str, Any]:
        command = ["generate", "-q", "--json", "-m", str(tiny_checkpoint), "-n", "12", "--ignore-eos", *arguments, "ab"]
        assert main(command) == 0
        return dict(json.loads(capsys.readouterr().out))

    first = text("--temp", "1", "-s", "1")
    assert text("--temp", "1", "-s", "1")["text"] == first["text"]
    assert text("--temp", "1", "-s", "2")["text"] != first["text"]
    unseeded = text("--temp", "1")
    assert text("--temp", "1", "-s", str(unseeded["seed"]))["text"] == unseeded["text"]
    assert text("--temp", "1")["seed"] != unseeded["seed"]


@pytest.mark.parametrize(
    ("arguments", "file", "expected"),
    [
        ([], {}, {}),
        ([], {"max_new_tokens": 7}, {}),
        (["--temp", "0"], {"do_sample": True}, {"do_sample": False}),
        (["--temp", "0.7"], {}, {"do_sample": True, "temperature": 0.7}),
        (["--top-p", "0.9"], {}, {"do_sample": True, "top_p": 0.9}),
        (["--temp", "2", "--top-k", "0"], {}, {"do_sample": True, "temperature": 2.0, "top_k": 0}),
        (["--min-p", "0.1", "--top-k", "3"], {"temperature": 0.5}, {"do_sample": True, "min_p": 0.1, "top_k": 3}),
        (["--repetition-penalty", "1.2"], {"do_sample": True}, {"repetition_penalty": 1.2}),
        (["--ignore-eos"], {}, {"eos_token_id": None}),
    ],
)  # fmt: skip
def test_what_flags_mean_to_generate(
    arguments: list[str],
    file: dict[str, Any],
    expected: dict[str, Any],
    tiny_checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = shutil.copytree(tiny_checkpoint, tmp_path / "model")
    (folder / "generation_config.json").write_text(json.dumps(file))
    seen: dict[str, Any] = {}

    def generate(self: Any, ids: list[list[int]], **options: Any) -> list[list[int]]:
        seen.update(options)
        return [[*ids[0], 5]]

    monkeypatch.setattr(refdiff.DiffLlamaForCausalLM, "generate", generate)
    assert main(["generate", "-q", "-m", str(folder), *arguments, "x"]) == 0
    always = {"streamer", "seed", "max_new_tokens", "num_return_sequences", "return_dict_in_generate", "tokenizer"}
    assert {name: value for name, value in seen.items() if name not in always} == expected
    assert seen["max_new_tokens"] == file.get("max_new_tokens", 128)
    assert seen["num_return_sequences"] == 1
    assert seen["return_dict_in_generate"] is False


def test_the_end_token_of_generation_config_counts(reciting: Path, tmp_path: Path, capsys: Capture) -> None:
    folder = shutil.copytree(reciting, tmp_path / "model")
    bang = refdiff.Tokenizer.from_pretrained(reciting).encode("!", add_special_tokens=False)[0]
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [bang, 1]}))
    assert main(["generate", "-m", str(folder), "h"]) == 0
    out, err = capsys.readouterr()
    assert out == "éあ😀!\n"
    assert "finish: eos;" in err
    assert "generated     10 tokens" in err


def test_chat(reciting: Path, capsys: Capture) -> None:
    command = ["generate", "-q", "-n", "1", "--echo", "-m", str(reciting), "--chat", "--system", "be brief", "hi"]
    assert main(command) == 0
    assert capsys.readouterr().out.startswith("[system] be brief\n[user] hi\n[bot] ")


@pytest.mark.parametrize("templates", [None, {"rag": "a", "tool_use": "b"}])
@pytest.mark.parametrize("how", [["h"], ["--prompts-file", "prompts.txt"]])
def test_chat_without_a_template_says_to_leave_out_the_flag(
    how: list[str],
    templates: dict[str, str] | None,
    reciting: Path,
    capsys: Capture,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prompts.txt").write_text("h\nh\n")
    folder = Path(shutil.copytree(reciting, "model"))
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    listed = [{"name": name, "template": text} for name, text in (templates or {}).items()]
    settings["chat_template"] = listed or None
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    assert main(["generate", "-m", str(folder), "--chat", *how]) == 2
    expected = "none of its chat templates (rag, tool_use) is the default" if templates else "has no chat template"
    assert capsys.readouterr() == ("", f"refdiff generate: error: model: {expected}; leave out --chat\n")


@pytest.mark.parametrize("value", ["x", -1, True, 2.5])
def test_a_wrong_entry_of_generation_config_names_the_folder(
    value: Any, reciting: Path, tmp_path: Path, capsys: Capture
) -> None:
    folder = shutil.copytree(reciting, tmp_path / "model")
    (folder / "generation_config.json").write_text(json.dumps({"max_new_tokens": value}))
    assert main(["generate", "-m", str(folder), "h"]) == 2
    expected = f"error: {folder / 'generation_config.json'}: max_new_tokens: got {value!r}, expected an integer"
    assert expected in capsys.readouterr().err


def test_an_empty_prompt_starts_from_the_first_token(reciting: Path, capsys: Capture) -> None:
    assert main(["generate", "-q", "--json", "-m", str(reciting), ""]) == 0
    assert json.loads(capsys.readouterr().out)["prompt_tokens"] == 1


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (
            ["-m", "MODEL"],
            'PROMPT: got none, expected one; give it in quotes, "Once upon a time", with',
        ),
        (["-m", "MODEL", "a", "-p", "b"], "PROMPT and -p: got 2 prompts, expected one"),
        (["-m", "MODEL", "a", "--prompts-file", "b"], "PROMPT and --prompts-file: got 2 prompts, expected one"),
        (["-m", "MODEL", "--system", "s", "a"], "add --chat"),
        (["-m", "MODEL", "--stop", "", "a"], "--stop: got nothing"),
        (["-m", "MODEL", "--num-shards", "2", "a"], "--num-shards: goes with --prompts-file"),
        (
            ["-m", "MODEL", "--shard-index", "3", "--num-shards", "3", "a"],
            "--shard-index: got 3, expected 0 to 2 with --num-shards 3",
        ),
        (
            ["-m", "MODEL", "--temp", "0", "--top-k", "5", "--min-p", "0.1", "a"],
            "--top-k, --min-p: no effect with --temp",
        ),
        (["-m", "MODEL", "--json", "--prompts-file", "b"], "--json: is for one prompt"),
        (["-m", "MODEL", "--no-stream", "--prompts-file", "b"], "--no-stream: is for one prompt"),
        (["-m", "MODEL", "-f", "bad.txt"], "bad.txt: not UTF-8 at byte 1"),
    ],
)
def test_wrong_usage(
    arguments: list[str],
    expected: str,
    reciting: Path,
    capsys: Capture,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.txt").write_bytes(b"a\xffb")
    assert main(["generate", *(str(reciting) if a == "MODEL" else a for a in arguments)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert re.match(r"refdiff generate: error: (-|PROMPT|bad)", err)
    assert err.count("\n") == 1
    assert expected in err


@pytest.mark.parametrize(
    ("arguments", "status", "expected"),
    [
        (["-m", "no/such/folder/here", "a"], 2, "no/such/folder/here"),
        (["-m", "MODEL", "-f", "absent.txt"], 2, "absent.txt: no such file"),
        (["-m", "MODEL", "-n", "0", "x" * 600], 1, "prompt: got 601 tokens, expected fewer than 512, the context"),
    ],
)
def test_failures_are_one_line(
    arguments: list[str],
    status: int,
    expected: str,
    tiny_checkpoint: Path,
    capsys: Capture,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    command = ["generate", *(str(tiny_checkpoint) if a == "MODEL" else a for a in arguments)]
    assert main(command) == status
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("refdiff generate: error: ")
    assert err.count("\n") == 1
    assert expected in err
    with pytest.raises(Exception, match=r"."):
        main([*command, "--debug"])


def test_debug_shows_usage_errors_too(reciting: Path) -> None:
    with pytest.raises(Exception, match="PROMPT: got none"):
        main(["generate", "--debug", "-m", str(reciting)])


@pytest.mark.parametrize("how", [[], ["--no-stream"], ["--json"]])
def test_interrupted_text_is_kept(
    how: list[str], reciting: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    put = Transcript.put

    def interrupting(self: Transcript, ids: Any) -> None:
        put(self, ids)
        if len(self.ids) == 6:  # é, あ, and the first byte of the next
            raise KeyboardInterrupt

    monkeypatch.setattr(Transcript, "put", interrupting)
    assert main(["generate", *how, "-m", str(reciting), "h"]) == 130
    out, err = capsys.readouterr()
    assert (json.loads(out)["text"] + "\n" if how == ["--json"] else out) == "éあ\n"
    assert "finish: interrupted;" in err
    assert err.endswith("refdiff: interrupted\n")


def test_cupy_without_cupy_is_one_sentence(reciting: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cupy", None)
    assert main(["generate", "--backend", "cupy", "-m", str(reciting), "h"]) == 1
    err = capsys.readouterr().err
    assert err.startswith('refdiff generate: error: backend "cupy" is not available')
    assert 'pip install "cupy-cuda12x[ctk]>=13.3"' in err
    assert err.count("\n") == 1


def test_output_goes_into_a_file(reciting: Path, tmp_path: Path, capsys: Capture) -> None:
    for how, expected in (([], "éあ😀!\n"), (["--no-stream"], "éあ😀!\n"), (["--json"], None)):
        out = tmp_path / "out.txt"
        assert main(["generate", "-q", *how, "-m", str(reciting), "-o", str(out), "h"]) == 0
        text = out.read_text(encoding="utf-8")
        assert text == expected if expected else json.loads(text)["text"] == "éあ😀!"
    assert main(["generate", "-q", "-m", str(reciting), "-o", "-", "h"]) == 0
    assert capsys.readouterr() == ("éあ😀!\n", "")
    assert main(["generate", "-m", str(reciting), "-o", str(tmp_path / "no" / "x"), "h"]) == 2


@pytest.mark.parametrize("how", [[], ["--no-stream"], ["--json"]])
def test_a_file_is_replaced_only_by_a_complete_text(
    how: list[str], reciting: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out.txt"
    out.write_text("before")
    put = Transcript.put
    errors: list[BaseException] = [ValueError("no"), KeyboardInterrupt()]

    def ending(self: Transcript, ids: Any) -> None:
        put(self, ids)
        if len(self.ids) == 6:
            raise errors.pop(0)

    monkeypatch.setattr(Transcript, "put", ending)
    for status in (1, 130):
        assert main(["generate", *how, "-m", str(reciting), "-o", str(out), "h"]) == status
        assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("out.txt", "before")]
    printed, err = capsys.readouterr()
    assert (json.loads(printed)["text"] + "\n" if how == ["--json"] else printed) == "éあ\n"
    assert f"refdiff: {out} is left as it was; the text so far goes to standard output\n" in err


def test_a_null_device_takes_the_text(reciting: Path, capsys: Capture) -> None:
    assert main(["generate", "-q", "-m", str(reciting), "-o", os.devnull, "h"]) == 0
    assert capsys.readouterr() == ("", "")
    assert not Path(os.devnull).is_file()


def test_a_seed_without_effect_is_told(tiny_checkpoint: Path, capsys: Capture) -> None:
    line = "refdiff: warning: --seed: no effect on a greedy text; add --temperature 0.7, or leave it out\n"
    for options, told in (([], 1), (["--temperature", "0"], 1), (["--temperature", "1"], 0), (["--top-k", "5"], 0)):
        assert main(["generate", "-m", str(tiny_checkpoint), "-n", "1", "-s", "5", *options, "a"]) == 0
        assert capsys.readouterr().err.count(line) == told


def test_the_model_of_the_environment(reciting: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REFDIFF_MODEL", str(reciting))
    assert main(["generate", "-q", "h"]) == 0
    assert capsys.readouterr().out == "éあ😀!\n"
    assert main(["inspect"]) == 0
    assert capsys.readouterr().out.startswith(f"{reciting}\n")


def test_json_has_no_seed_that_nobody_gave_and_nothing_used(tiny_checkpoint: Path, capsys: Capture) -> None:
    for options, seeds in ((["--temp", "0"], False), (["--temp", "0", "-s", "5"], True), (["--temp", "1"], True)):
        assert main(["generate", "--json", "-q", "-n", "2", "-m", str(tiny_checkpoint), *options, "ab"]) == 0
        assert (json.loads(capsys.readouterr().out)["seed"] is not None) == seeds


def test_a_temperature_that_overflows_is_refused(tiny_checkpoint: Path, tmp_path: Path, capsys: Capture) -> None:
    command = ["generate", "-n", "2", "-m", str(tiny_checkpoint)]
    with pytest.raises(SystemExit) as ended:
        main([*command, "--temperature", "1e-320", "ab"])
    assert ended.value.code == 2
    assert "--temperature: got 1e-320, expected 0 or a number of at least 1e-06 and at most" in capsys.readouterr().err
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert main([*command, "--temperature", "1e-6", "--repetition-penalty", "1e-6", "ab"]) == 0
    path = tmp_path / "in.jsonl"
    path.write_text('{"prompt": "ab", "temperature": 1e-320}\n')
    assert main([*command, "--prompts-file", str(path)]) == 2
    assert "temperature: got 1e-320, expected 0 or a number of at least 1e-06" in capsys.readouterr().err


def test_the_seed_is_shown_where_it_matters(tiny_checkpoint: Path, capsys: Capture) -> None:
    for options, shown in ((["-s", "5"], False), (["-s", "5", "--top-k", "3"], True), (["--temp", "0"], False)):
        assert main(["generate", "-n", "2", "-m", str(tiny_checkpoint), *options, "ab"]) == 0
        assert ("; seed: 5;" in capsys.readouterr().err) == shown


def test_a_panic_of_a_library_is_one_line(reciting: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    class PanicError(BaseException):
        """What a Rust library raises: no Exception."""

    def panics(*_: Any, **__: Any) -> None:
        raise PanicError("called `Option::unwrap()` on a `None` value")

    monkeypatch.setattr(refdiff.Tokenizer, "encode", panics)
    assert main(["generate", "-m", str(reciting), "h"]) == 1
    assert capsys.readouterr().err == (
        "refdiff generate: error: PanicError: called `Option::unwrap()` on a `None` value\n"
    )


def test_each_problem_of_a_config_has_a_line(reciting: Path, tmp_path: Path, capsys: Capture) -> None:
    folder = shutil.copytree(reciting, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    config |= {"hidden_size": -3, "rms_norm_eps": "x", "use_cache": 5}
    (folder / "config.json").write_text(json.dumps(config))
    assert main(["generate", "-m", str(folder), "h"]) == 2
    first, *problems = capsys.readouterr().err.splitlines()
    assert first == f"refdiff generate: error: {folder}/config.json: 3 problems:"
    assert [line.split()[0] for line in problems] == ["hidden_size:", "rms_norm_eps:", "use_cache:"]


def test_each_problem_of_a_checkpoint_has_a_line(reciting: Path, tmp_path: Path, capsys: Capture) -> None:
    from safetensors.numpy import load_file, save_file

    folder = shutil.copytree(reciting, tmp_path / "model")
    stored = load_file(folder / "model.safetensors")
    del stored["model.norm.weight"], stored["model.layers.0.self_attn.lambda_q1"]
    save_file(stored, folder / "model.safetensors")
    assert main(["generate", "-m", str(folder), "h"]) == 2
    first, *problems = capsys.readouterr().err.splitlines()
    assert first.startswith(f"refdiff generate: error: {folder}")
    assert len(problems) == 2
    assert all(line.startswith("  ") for line in problems)
