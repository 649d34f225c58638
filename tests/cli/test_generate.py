"""`refdiff generate`, called in this process: where the prompt comes from, what comes out, what is refused."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

import refdiff
from refdiff.cli.answering import given_options
from refdiff.cli.parser import build_parser

from .conftest import Cli, copy, end_texts

TEXT = "éあ😀!"
FORMS = pytest.mark.parametrize("how", [[], ["--no-stream"], ["--json"]])
"""Every form in which a text is printed."""


def text_of(how: list[str], out: str) -> str:
    return str(json.loads(out)["text"]) if how == ["--json"] else out.removesuffix("\n")


def test_text_alone_on_standard_output_and_statistics_on_standard_error(reciting: Path, cli: Cli) -> None:
    done = cli("generate", "-m", reciting, "h")
    assert (done.status, done.out) == (0, f"{TEXT}\n")
    _, prompt, generated, finish = done.err.splitlines()
    assert prompt.split()[:3] == ["prompt", "2", "tokens"]
    assert generated.split()[:3] == ["generated", "11", "tokens"]
    assert prompt.endswith(" tok/s")
    assert generated.endswith(" tok/s")
    assert finish.startswith("finish: eos; peak memory: ")
    assert cli("generate", "-q", "-m", reciting, "h") == (0, f"{TEXT}\n", "")


def test_json_is_one_object(reciting: Path, cli: Cli) -> None:
    _, out, err = cli("generate", "--json", "-m", reciting, "-s", "9", "h")
    row = json.loads(out)
    assert err  # statistics for people as well
    assert out.count("\n") == 1
    assert row.pop("peak_memory_bytes") > 1_000_000
    assert row.pop("prompt_tokens_per_second") > 0
    assert row.pop("generated_tokens_per_second") > 0
    counts = {"prompt_tokens": 2, "generated_tokens": 11, "seed": 9, "finish_reason": "eos"}
    assert row == {"model": str(reciting), "prompt": "h", "text": TEXT, **counts}
    assert json.loads(cli("generate", "--json", "-m", reciting, "").out)["prompt_tokens"] == 1, "an empty prompt"


@pytest.mark.parametrize(
    ("arguments", "text", "reason"),
    [
        ("-n 3", "é", "length"),
        ("--ignore-eos -n 15", "éあ😀!hé", "length"),
        ("--stop zz --stop あ😀 --stop !", "é", "stop"),
        ("--num-beams 3", TEXT, "eos"),
        ("-n 0", TEXT, "eos"),
        ("--no-repeat-ngram-size 1 --ignore-eos -n 11", TEXT, "length"),
    ],
)
@pytest.mark.parametrize("how", [[], ["--no-stream"]])
def test_where_the_text_ends(arguments: str, text: str, reason: str, how: list[str], reciting: Path, cli: Cli) -> None:
    done = cli("generate", *how, "-m", reciting, *arguments.split(), "h")
    assert (done.status, done.out) == (0, text + "\n")
    assert f"finish: {reason};" in done.err


def test_sampling_with_a_seed_is_repeatable_and_says_its_seed(tiny_checkpoint: Path, cli: Cli) -> None:
    def text(*arguments: str) -> tuple[str, int]:
        command = ("generate", "-q", "--json", "-m", tiny_checkpoint, "-n", "12", "--ignore-eos", "--temp", "1")
        row = json.loads(cli(*command, *arguments, "ab").out)
        return row["text"], row["seed"]

    first = text("-s", "1")
    assert text("-s", "1") == first
    assert text("-s", "2")[0] != first[0]
    unseeded = text()
    assert text("-s", str(unseeded[1])) == unseeded
    assert text()[1] != unseeded[1]


@pytest.mark.parametrize(
    ("arguments", "file", "expected"),
    [
        ("--temp 0", {"do_sample": True}, {"do_sample": False}),
        ("--top-p 0.9", {}, {"do_sample": True, "top_p": 0.9}),
        ("--min-p 0.1 --top-k 3", {"temperature": 0.5}, {"do_sample": True, "min_p": 0.1, "top_k": 3}),
        ("--repetition-penalty 1.2", {"do_sample": True}, {"repetition_penalty": 1.2}),
        ("--ignore-eos", {}, {"eos_token_id": None}),
    ],
)
def test_flags_become_arguments_of_generate(
    arguments: str, file: dict[str, Any], expected: dict[str, Any], tiny_checkpoint: Path, tmp_path: Path, cli: Cli,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    seen: dict[str, Any] = {}

    def generate(self: Any, ids: list[list[int]], **options: Any) -> list[list[int]]:
        seen.update(options)
        return [[*ids[0], 5]]

    monkeypatch.setattr(refdiff.DiffLlamaForCausalLM, "generate", generate)
    folder = copy(tiny_checkpoint, tmp_path, "generation_config.json", **file)
    assert cli("generate", "-q", "-m", folder, *arguments.split(), "x").status == 0
    always = {"max_new_tokens": file.get("max_new_tokens", 128), "num_return_sequences": 1}
    always["return_dict_in_generate"] = False
    seen = {name: value for name, value in seen.items() if name not in ("streamer", "seed", "tokenizer")}
    assert seen == {**always, **expected}


def test_texts_far_beyond_the_context_are_refused(tiny_checkpoint: Path, here: Path, cli: Cli) -> None:
    beyond = f"got 5,121, expected at most 5,120, 10 times the context of {tiny_checkpoint}\n"
    assert cli("generate", "-m", tiny_checkpoint, "-n", "5121", "h") == (
        2,
        "",
        f"refdiff generate: error: -n: {beyond}",
    )
    (here / "prompts.txt").write_text("h\n")
    done = cli("generate", "-q", "-m", tiny_checkpoint, "-n", "5121", "--prompts-file", "prompts.txt")
    assert done == (2, "", f"refdiff generate: error: -n: {beyond}")
    copy(tiny_checkpoint, here, "generation_config.json", max_new_tokens=2**31 - 1)
    done = cli("generate", "-m", "model", "h")
    assert (done.status, done.out) == (2, "")
    assert "generation_config.json: max_new_tokens: got 2,147,483,647, expected at most 5,120, 10 times" in done.err


def test_the_bundled_model_does_not_repeat_itself(cli: Cli) -> None:
    told = cli("generate", "-q", "The old woman said").out.split()
    fours = [tuple(told[i : i + 4]) for i in range(len(told) - 3)]
    assert len(set(fours)) > 0.9 * len(fours)
    plain = cli("generate", "-q", "--repetition-penalty", "1", "The old woman said").out.split()
    assert len({tuple(plain[i : i + 4]) for i in range(len(plain) - 3)}) <= 0.9 * len(plain)


def test_the_defaults_for_the_bundled_model_are_those_of_the_help(cli: Cli) -> None:
    for chat, expected in (([], (1.2, None)), (["--chat"], (1.2, 4))):
        given = given_options(build_parser().parse_args(["generate", *chat]))
        assert (given["repetition_penalty"], given.get("no_repeat_ngram_size")) == expected
    assert "no_repeat_ngram_size" not in given_options(build_parser().parse_args(["generate", "--chat", "-m", "x"]))
    said = " ".join(cli("generate", "--help").out.split())
    assert "1.2 for the bundled model, which repeats itself without; with --chat, --no-repeat-ngram-size is" in said


def test_chat(reciting: Path, cli: Cli) -> None:
    command = ("generate", "-q", "-n", "1", "--echo", "-m", reciting, "--chat", "--system", "be brief", "hi")
    assert cli(*command).out.startswith("[system] be brief\n[user] hi\n[bot] ")


@pytest.mark.parametrize("templates", [None, {"rag": "a", "tool_use": "b"}])
def test_chat_without_a_template_says_to_leave_out_the_flag(
    templates: dict[str, str] | None, reciting: Path, cli: Cli, here: Path
) -> None:
    listed = [{"name": name, "template": text} for name, text in (templates or {}).items()]
    copy(reciting, here, "tokenizer_config.json", chat_template=listed or None)
    expected = "none of its chat templates (rag, tool_use) is the default" if templates else "has no chat template"
    assert cli("generate", "-m", "model", "--chat", "h") == (
        *(2, ""),
        f"refdiff generate: error: model: {expected}; leave out --chat, or give a model with one, such as -m bundled\n",
    )


@FORMS
def test_interrupted_text_is_kept(how: list[str], reciting: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    end_texts(monkeypatch, 6, KeyboardInterrupt())
    done = cli("generate", *how, "-m", reciting, "h")
    assert (done.status, text_of(how, done.out)) == (130, "éあ")
    assert "finish: interrupted;" in done.err
    assert done.err.endswith("refdiff: interrupted\n")


@FORMS
def test_a_file_is_replaced_only_by_a_complete_text(
    how: list[str], reciting: Path, here: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = here / "out.txt"
    out.write_text("before")
    command = ("generate", "-q", *how, "-m", reciting, "-o", "out.txt", "h")
    with monkeypatch.context() as patch:
        end_texts(patch, 6, ValueError("no"), KeyboardInterrupt())
        assert cli(*command).status == 1
        done = cli(*command)
        assert [(path.name, path.read_text()) for path in here.iterdir()] == [("out.txt", "before")]
    assert (done.status, text_of(how, done.out)) == (130, "éあ")
    assert "refdiff: out.txt is not written; the text so far goes to standard output\n" in done.err
    assert cli(*command) == (0, "", "")
    assert text_of(how, out.read_text(encoding="utf-8")) == TEXT


def test_a_null_device_takes_the_text(reciting: Path, cli: Cli) -> None:
    assert cli("generate", "-q", "-m", reciting, "-o", os.devnull, "h") == (0, "", "")
    assert not Path(os.devnull).is_file()
    assert cli("generate", "-q", "-m", reciting, "-o", "-", "h") == (0, f"{TEXT}\n", "")


def test_cupy_without_cupy_is_one_sentence(reciting: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cupy", None)
    status, _, err = cli("generate", "--backend", "cupy", "-m", reciting, "h")
    assert (status, err.count("\n")) == (1, 1)
    assert err.startswith("refdiff generate: error: --backend cupy is not available")
    assert err.endswith("or use --backend numpy\n")
    assert 'pip install "cupy-cuda12x[ctk]>=13.3"' in err


def test_the_model_of_the_environment(reciting: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REFDIFF_MODEL", str(reciting))
    assert cli("generate", "-q", "h").out == f"{TEXT}\n"
    assert cli("inspect").out.startswith(f"{reciting}\n")
    monkeypatch.setenv("REFDIFF_MODEL", "./nowhere")
    for words, told in (([], True), (["-m", "./nothere"], False)):
        done = cli("generate", *words, "x")
        assert (done.status, done.err.endswith("; the model is that of REFDIFF_MODEL\n")) == (2, told)
