"""Wrong usage of every command: status 2, one line that names what was typed, and nothing written."""

from __future__ import annotations

import os
import re
import shlex
from pathlib import Path

import numpy as np
import pytest

from refdiff.cli.parser import COMMANDS
from refdiff.oracle.inputs.arrays import write_arrays
from refdiff.oracle.truth import truth
from tests.oracle.example_inputs import draw, small
from tests.training.conftest import tale

from .conftest import Cli

USAGE = (
    ("attention x -o page.htm", "-o page.htm: got .htm, expected a file name that ends in .html, .png, .svg, .npz"),
    ("attention x -p y -o page.html", "PROMPT and -p: got 2 prompts, expected one; leave one out"),
    ("attention x -o a.npz --layer 0", "-o: an .npz holds every layer and pair"),
    ("attention -m TINY x -o a.html --layer 2", "--layer: got 2, expected 0 to 1"),
    ("bench --rows speed", "--rows: got 'speed', expected cold"),
    ("bench -m x --like tiny", "-m, --like: got both, expected one"),
    ("bench --dtype float16", "--dtype: got float16, expected float32 or float64 with --backend numpy"),
    ("bench --backend cupy --dtype float16 --rows train:3m", "--dtype: got float16, expected float32 or float64 for"),
    ("bench --json .", "--json .: got a folder, expected a file; name a file in it"),
    ("check", "FILE: got none, expected a file of inputs and outputs"),
    ("check --spec llama mine.safetensors", "--spec: got 'llama', expected hf_diffllama, ms_v1"),
    ("check --recipe int8 mine.safetensors", "--recipe int8: no recipe is called 'int8'"),
    ("check none.safetensors", "none.safetensors: no such file"),
    ("check list.json", "list.json: "),
    ("check shape.safetensors", "shape.safetensors: out: got shape (2, 5, 6, 12), expected (2, 6, 5, 12): "),
    ("check integers.safetensors", "integers.safetensors: out: got dtype int32, expected float64"),
    ("check --spec list.json mine.safetensors", "list.json holds no JSON object"),
    ("check inputs.safetensors", "…nothing to judge"),
    ("check notes.txt", "notes.txt: neither .safetensors nor .npz; write one, for instance with numpy.savez"),
    ("check notes.pt", "notes.pt: got a .pt file, expected .safetensors or .npz; write one with safetensors.torch"),
    ("check many.safetensors", "…a18, a19 and 28 more, but no q and no x"),
    ("check layer.safetensors", "…the inputs lack q_proj.weight"),
    ("judge kernel.py --memory 0.05", "--memory: got 0.05, expected a number of at least 0.1; see refdiff judge -h"),
    ("convert absent/folder/here new --to paper", "absent/folder/here: "),
    ("convert bundled bundled --to paper", "OUTPUT bundled: got the name of MODEL, expected another; a conversion wr"),
    ("generate -m model.gguf x", "model.gguf: GGUF is not read; give the folder or the hub repo that has the model as"),
    ("generate -m TINY", 'PROMPT: got none, expected one; give it in quotes, "Once upon a time", with'),
    ("generate a --prompts-file b", "PROMPT and --prompts-file: got 2 prompts, expected one"),
    ("generate --system s a", "--system: has a place in a chat template only; add --chat"),
    ("generate -o '' a", "-o: got nothing, expected a value; see refdiff generate -h"),
    ("generate --prompts-file ''", "--prompts-file: got nothing, expected a value; see refdiff generate -h"),
    ("convert bundled '' --to paper", "OUTPUT: got nothing, expected a value; see refdiff convert -h"),
    ("train '' -o run", "TEXT: got nothing, expected a value; see refdiff train -h"),
    ("generate --stop '' a", "--stop: got nothing"),
    ("generate --temp 0 --top-k 5 --min-p 0.1 a", "--top-k, --min-p: no effect with --temp"),
    ("generate --json --prompts-file b", "--json: only for one prompt"),
    ("generate -m TINY -f none.txt", "-f none.txt: no such file"),
    ("generate --prompts-file none.txt", "--prompts-file none.txt: no such file"),
    ("golden export new --profile foo", "--profile: got 'foo', expected one of discriminating, tiny_values, can"),
    ("trace m x -o x.npz --all", "--all: only for --compare; the model to record is the first argument"),
    ("trace m x -o x.npz --precision bfloat16", "--precision: only for --compare; the model to record is the first"),
    ("trace --spec ms_v1 mine.safetensors -o x.npz --all", "--all: no effect with --spec, which takes a FILE"),
    ("train text.txt -o out --config absent/folder/here", "--config absent/folder/here: no such folder"),
    ("generate -m TINY -f bad.txt", "-f bad.txt: not UTF-8 at byte 1"),
    ("generate -m . a", ".: not a checkpoint: it has no config.json"),
    ("golden export a b --json --diagnose", "OUTPUTS b, --diagnose, --json: only for verify; export takes VECTORS"),
    ("golden verify a", "OUTPUTS: got none, expected the folder of what your program computed"),
    ("golden verify a b --recipe tf32 --no-gradients", "--recipe, --no-gradients: only for export; verify judges by"),
    (f"golden export {os.devnull}", f"VECTORS {os.devnull}: got a device or a pipe, expected a folder; name another"),
    ("golden export .", "VECTORS .: got a folder with files, expected a new or empty one"),
    ("golden verify . .", "…no test vectors; write some with refdiff golden export"),
    ("help genrate", "COMMAND: got 'genrate', expected one of generate, "),
    ("inspect absent/folder/here", "absent/folder/here: "),
    ("inspect --offline bundeld", "…; did you mean bundled?"),
    ("trace ./tokn text -o x.npz", "tokn: no such folder; did you mean token?"),
    ("judge absent.py", "absent.py: no such file"),
    ("judge 'kernel.py:two words'", "KERNEL: got 'kernel.py:two words', expected FILE.py or FILE.py:FUNCTION"),
    ("judge kernel.py --size 2x0x3", "--size: got '2x0x3', expected batch x queries x keys, such as 1x512x512"),
    ("trace m text --ids 1", "PROMPT and --ids: got both, expected one; leave one out"),
    ("trace 'a text' -o x.npz", "MODEL and PROMPT (or --ids): got 'a text' alone, expected both to record a run; "),
    ("trace --ids 1 -o x.npz", "MODEL and PROMPT (or --ids): got neither, expected both to record a run; --com"),
    ("trace -m TINY text -o x.npz", "-m: only for --compare; the model to record is the first argument"),
    ("trace m text", "-o: got none, expected the file to write, such as -o run.safetensors"),
    ("trace m text -o x.npz --all", "--all: only for --compare; the model to record is the first argument"),
    ("trace m --ids 1,x -o x.npz", "--ids: got '1,x', expected whole numbers with commas between, such as"),
    ("trace m --ids , -o x.npz", "--ids: got ',', expected one or more token ids, from 0"),
    ("trace TINY --ids 259 -o x.npz", "--ids: got 259, expected token ids from 0 to 258, the vocabulary of the model"),
    ("trace TINY --ids 5 -o run.pt", "-o run.pt: got .pt, expected a file name that ends in .safetensors, .npz"),
    ("trace m x -o x.npz --layer 3", "--layer: only for --spec; the model has its own"),
    ("trace --spec ms_v1", "--spec: expected the FILE of its inputs and -o, such as: refdiff trace --spec"),
    ("trace m x -o x.npz --spec ms_v1", "PROMPT: no effect with --spec, which takes a FILE of inputs"),
    ("trace --compare a b --spec ms_v1", "--spec: only to record; --compare takes MINE and REF"),
    ("train -o out", "TEXT: got none, expected a UTF-8 file; or continue a run with --resume"),
    ("train none.txt -o out", "TEXT none.txt: no such file"),
    ("train . -o out", "TEXT .: got a folder, expected a UTF-8 file"),
    (f"train {os.devnull} -o out", f"TEXT {os.devnull}: got a device or a pipe, which cannot be read twice"),
    ("train - -o out", "TEXT -: got standard input, expected a UTF-8 file, which is read twice"),
    ("train text.txt -o bad.txt", "-o bad.txt: got a file, expected the folder of the run"),
    ("train text.txt -o out --config none.json", "--config none.json: no such file"),
    ("train text.txt -o out --heads 3", "--heads: got 3, expected an even number"),
    ("train https://x.y/text.txt -o out", "TEXT https://x.y/text.txt: got a URL, expected a UTF-8 file; download"),
    ("train text.txt -o out --hidden-size 63", "--hidden-size: got a width of 63 and 6 heads, expected a"),
    ("train text.txt -o out --batch 4 --accumulate 3", "--batch: got 4, expected a multiple of --accumulate 3"),
    ("train line.txt -o out", "the validation part of the text is empty; take a text of more lines"),
    ("train line.txt -o out --vocab-size 2048", "--vocab-size: got 2048, expected at most 2"),
)  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files that the commands are given."""
    folder, spec = tmp_path_factory.mktemp("files"), small("hf_diffllama")
    (folder / "bad.txt").write_bytes(b"a\xffb")
    (folder / "token" / "full").mkdir(parents=True)
    (folder / "token" / "full" / "notes.txt").touch()
    texts = {
        "list.json": "[]",
        "notes.txt": "some notes",
        "notes.pt": "",
        "line.txt": "once upon a time\n",
        "text.txt": tale(),
    }
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")
    x, q = np.ones(3, dtype=np.float32), draw(spec, dtype=np.float32)
    out = truth(spec, draw(spec)).out
    for name, arrays in {
        "mine": {**q, "out": out.astype(np.float32)},
        "inputs": q,
        "layer": {"x": x, "out": x},
        "many": {f"a{n}": x for n in range(40)},
        "shape": {**q, "out": np.ascontiguousarray(np.swapaxes(out, 1, 2))},
        "integers": {**q, "out": out.astype(np.int32)},
    }.items():
        write_arrays(folder / f"{name}.safetensors", arrays, {})
    return folder


@pytest.mark.parametrize(("words", "message"), USAGE, ids=[words for words, _ in USAGE])
def test_wrong_usage(
    words: str, message: str, folder: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, cli: Cli
) -> None:
    monkeypatch.chdir(folder)
    before = sorted(folder.iterdir())
    command, *rest = shlex.split(words)
    done = cli(command, *(tiny_checkpoint if word == "TINY" else word for word in rest))
    assert (done.status, done.out) == (2, "")
    *notes, line = done.err.splitlines()
    said = re.fullmatch(rf"refdiff {command}: error: (.*)", line)
    assert said, done.err
    assert message[1:] in said[1] if message.startswith("…") else said[1].startswith(message)
    assert not notes or command == "train"  # which says what takes so long
    assert sorted(folder.iterdir()) == before


def test_every_command_is_among_them() -> None:
    assert {words.split()[0] for words, _ in USAGE} == set(COMMANDS)


@pytest.mark.parametrize("words", ["generate --debug -m TINY", "generate --debug -m TINY -n 0 " + "x" * 600])
def test_debug_raises_what_would_be_a_line(words: str, tiny_checkpoint: Path, cli: Cli) -> None:
    with pytest.raises(ValueError, match=r"PROMPT: got none|prompt: got 601 tokens, expected fewer than 512, the"):
        cli(*words.replace("TINY", str(tiny_checkpoint)).split())
