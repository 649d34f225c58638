"""Ways to break a folder: JSON by structure, safetensors by header, any file by bytes or by what stands there."""

from __future__ import annotations

import functools
import io
import json
import os
import shutil
import socket
import zipfile
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from refdiff import limits

ESCAPES = ("\x1b[2J\x1b]0;x\x07", "\u202egnp.exe", "\ud800", "a\nb\rc", "\x9b31m", "\u2028", "\0")
NUMBERS = (
    0, -1, 1, 2, 3, 2**31 - 1, 2**31, 2**53, 2**63, 2**64 - 1, 10**18, 10**40, 10**400, -(2**63), 0.5, -0.0, 1e-308,
    1e30, 1e308, float("inf"), float("-inf"), float("nan"),
)  # fmt: skip
TEMPLATES = (
    "{% for i in range(1000000000) %}a{% endfor %}",
    "{{ 'a ' * 400000 }}",
    "{{ 'a' * 10000000000 }}",
    "{{ messages | map('upper') }}",
    "{{ ''.__class__.__mro__ }}",
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "{{ messages }}" * 2000,
    "{% if %}",
    "{{ '\x1b[2J' }}",
    "{{ raise_exception('\x1b[2J\u202e' * 9999) }}",
    "{{ 9**9**9 }}",
    "{{ range }}",
    "{{ '%999999999d' % 1 }}",
    "{% set ns = namespace(x='a') %}{% for i in range(99) %}{% set ns.x = ns.x + ns.x %}{% endfor %}{{ ns.x }}",
    "{{ [1] * 1000000000 }}",
    "{{ '{:>999999999}'.format(1) }}",
    "{{ 'a'.ljust(10**9) }}",
    "{{ range(100000) | list }}",
    "{% include 'x' %}",
    "{{ self }}",
    "{{ messages.append(messages) }}{{ messages }}",
    "{{ 'aaaaaaaaaaaaaaaa!' | urlize }}",
)
LARGEST_CHANGED = 10**7
"""Bytes of the largest file that is changed again: an earlier change may have made a sparse one of gigabytes."""
NAMED_BY_THE_USER = ("outputs", "run.safetensors", "bare.safetensors", "run.npz", "in.jsonl")
"""Files, and a folder, that an action names itself: a link there is followed wherever it leads, as `cat` does."""
PIPES_ALLOWED = ("in.jsonl",)
"""What may be a device too. A pipe into which nobody writes, or a terminal, would be waited for, as `cat` does."""
OTHERS = (
    b"", b"version https://git-lfs.github.com/spec/v1\n", b"<!doctype html>", b"\xef\xbb\xbf{}", b"PK\x03\x04",
    b"\x80\x02}q\x00.", b"null", b"{}", b"[]", bytes(8),
)  # fmt: skip
CODES = ("BOOL", "U8", "I8", "F16", "BF16", "F32", "F64", "I64", "F8_E4M3", "F4", "C64", "X", "")
STEPS: tuple[dict[str, Any], ...] = (
    {"type": "Replace", "pattern": {"Regex": "(a*)*b"}, "content": "x" * 999},
    {"type": "Prepend", "prepend": "y" * 9999},
    {"type": "Precompiled", "precompiled_charsmap": "////fw=="},
    {"type": "Strip", "content": "a", "start": 0, "stop": 2**64 - 1},
    {"type": "Replace", "pattern": {"String": ""}, "content": "zz"},
    {"type": "NFKD"},
    {"type": "Metaspace", "replacement": "ab"},
    {"type": "Split", "pattern": {"Regex": "(?=a)|" * 50}, "behavior": "Isolated", "invert": False},
    {"type": "Fuse"},
    {"type": "WordPiece", "prefix": "\x1b", "cleanup": True},
    {"type": "Sequence", "normalizers": [{"type": "NFC"}] * 5000},
    {"type": "CTC", "pad_token": "", "word_delimiter_token": "", "cleanup": True},
    {"type": "Digits", "individual_digits": 3},
)

SECTIONS = {"normalizer": "normalizers", "pre_tokenizer": "pretokenizers", "post_processor": "processors",
            "decoder": "decoders"}  # fmt: skip
MODEL_FIELDS: dict[str, tuple[Any, ...]] = {
    "type": ("BPE", "WordPiece", "WordLevel", "Unigram"),
    "continuing_subword_prefix": ("a", "##", "é", "x" * 6000),
    "end_of_word_suffix": ("a", "</w>", "x" * 6000),
    "unk_token": ("a", "<unk>", "x" * 6000),
    "max_input_chars_per_word": (0, 10**15),
    "unk_id": (0, 2**63),
    "byte_fallback": (True, False),
    "dropout": (0.0, 1.0, 2.0),
}


def mutate(folder: Path, outside: Path, rng: Random) -> str:
    """Change one thing in a folder; say what."""
    files = sorted(
        path
        for path in folder.rglob("*")
        if path.is_file() and not path.is_symlink() and path.stat().st_size < LARGEST_CHANGED
    )
    path = rng.choice(files)
    suitable = [_by_bytes, _in_its_place]
    if path.suffix in (".json", ".jsonl"):
        suitable += [_in_json] * 6
    if path.name == "generation_config.json":
        suitable += [_in_options] * 12
    if path.suffix == ".safetensors":
        suitable += [_in_header] * 4
    if path.name == "tokenizer.json":
        suitable += [_in_tokenizer] * 6
    if path.suffix == ".npz":
        suitable += [_bomb] * 2
    if path.suffix == ".jinja":
        suitable += [_template] * 4
    if rng.random() < 0.05:
        return _beside(folder, outside, rng)
    change = rng.choice(suitable)
    return f"{path.relative_to(folder)}: {change.__name__}: {change(path, outside, rng)}"


def value(rng: Random) -> Any:
    """A JSON value that somebody hostile, careless or unlucky would write."""
    makers: list[Callable[[], Any]] = [
        lambda: rng.choice(NUMBERS), lambda: rng.choice(NUMBERS), lambda: rng.choice(ESCAPES),
        lambda: rng.choice((None, True, False, "", [], {}, [[]], "x" * 10**5, "auto", "NaN", "../../x", "/dev/zero")),
        lambda: [rng.choice(NUMBERS)] * rng.choice((1, 3, 10**4)), lambda: {"a": {"b": rng.choice(ESCAPES)}},
        lambda: rng.choice(TEMPLATES), lambda: dict(rng.choice(STEPS)), lambda: nested(rng.choice((50, 99, 500))),
    ]  # fmt: skip
    return rng.choice(makers)()


def nested(depth: int) -> Any:
    """A list in a list, so many levels deep."""
    result: Any = 0
    for _ in range(depth):
        result = [result]
    return result


def _in_json(path: Path, outside: Path, rng: Random) -> str:
    text = path.read_text("utf-8", "replace")
    lines = text.splitlines() or [""] if path.suffix == ".jsonl" else [text]
    at = rng.randrange(len(lines))
    try:
        parsed = json.loads(lines[at])
    except (ValueError, RecursionError):
        return _by_bytes(path, outside, rng)
    said = _change(parsed, rng)
    lines[at] = json.dumps(parsed)
    if path.suffix == ".jsonl":
        lines[at] = lines[at].replace("Infinity", "1e400")  # which Python reads as the same, and without a word
    if rng.random() < 0.05:
        lines[at] = lines[at].replace("{", '{"x": 1, "x": 2, ', 1)
    path.write_text("\n".join(lines), encoding="utf-8", errors="surrogatepass")
    return said


def _change(parsed: Any, rng: Random) -> str:
    """Change one place of a parsed JSON value, in place."""
    place, way = parsed, []
    while isinstance(place, dict | list) and place:
        key = rng.choice(list(place)) if isinstance(place, dict) else rng.randrange(len(place))
        way.append(key)
        if not isinstance(place[key], dict | list) or not place[key] or rng.random() < 0.4:
            break
        place = place[key]
    if not way:
        return "empty"
    key = way[-1]
    kind = rng.choice(("value", "value", "value", "remove", "rename", "add", "repeat"))
    if kind == "remove":
        del place[key]
    elif kind == "repeat" and isinstance(place, list):
        place *= rng.choice((2, 1000))
    elif kind in ("rename", "add") and isinstance(place, dict):
        name = rng.choice((*ESCAPES, "x" * 300, "layers." + "9" * 400, "num_labels", "auto_map", "__class__"))
        place[name] = place.pop(key) if kind == "rename" else value(rng)
    else:
        place[key] = value(rng)
    return f"{kind} {'.'.join(map(str, way))}"


def _in_options(path: Path, outside: Path, rng: Random) -> str:
    """An option of `generate` of another type, or far too large."""
    name = rng.choice([*sorted(limits.OPTIONS), "do_sample", "max_length", "stop_strings", "eos_token_id"])
    options = {name: rng.choice(("3", 0, 1.5, [1], True, {"a": 1}, 2**31 - 1, 10**40, value(rng)))}
    path.write_text(json.dumps(options), encoding="utf-8", errors="surrogatepass")
    return json.dumps(options)[:60]


def _in_header(path: Path, outside: Path, rng: Random) -> str:
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    try:
        header, data = json.loads(raw[8 : 8 + length]), raw[8 + length :]
    except (ValueError, RecursionError):
        return _by_bytes(path, outside, rng)
    if not isinstance(header, dict):
        return _by_bytes(path, outside, rng)
    entry = header[rng.choice(list(header))] if header else {}
    entry = entry if isinstance(entry, dict) else {}  # an earlier change may have left anything
    kind = rng.choice(("any", "dtype", "shape", "offsets", "length", "sparse", "swap"))
    if kind == "dtype" and "dtype" in entry:
        entry["dtype"] = rng.choice(CODES)
    elif kind == "shape" and isinstance(entry.get("shape"), list):
        entry["shape"] = rng.choice(([], [0], [-1], [2**62, 4], [2**63], entry["shape"][::-1], [1] * 99))
    elif kind == "offsets" and "data_offsets" in entry:
        entry["data_offsets"] = [rng.choice((0, 4, 2**63, -8)), rng.choice((0, 8, 2**63, 10**20))]
    elif kind == "swap" and len(header) > 2:
        one, other = rng.sample(list(header), 2)
        header[one], header[other] = header[other], header[one]
    else:
        _change(header, rng)
    text = json.dumps(header).encode()
    size = rng.choice((0, 7, 2**63, 2**64 - 1, len(text) - 1)) if kind == "length" else len(text)
    path.write_bytes(size.to_bytes(8, "little") + text + data)
    if kind == "sparse":
        os.truncate(path, 3 * 10**9)
    return kind


def _in_tokenizer(path: Path, outside: Path, rng: Random) -> str:
    """Steps where the library looks for them, added tokens by the thousand, fields of the model."""
    try:
        content = json.loads(path.read_bytes())
        model = content["model"]
    except (ValueError, LookupError, TypeError):
        return _by_bytes(path, outside, rng)
    kind = rng.choice(("steps", "steps", "steps", "added", "long", "model", "order"))
    if kind == "steps":
        section = rng.choice(sorted(SECTIONS))
        steps = [dict(rng.choice(STEPS)) for _ in range(rng.choice((1, 1, 3, 20)))]
        content[section] = steps[0] if len(steps) == 1 else {"type": "Sequence", SECTIONS[section]: steps}
    elif kind == "added":
        flags = {name: rng.random() < 0.5 for name in ("single_word", "lstrip", "rstrip", "special")}
        token = {"normalized": rng.random() < 0.7, **flags}
        content["added_tokens"] = [{"id": 999 + i, "content": f"{i}" + "a" * 40, **token} for i in range(2000)]
        content["normalizer"] = rng.choice((None, {"type": "Prepend", "prepend": "y" * 900}, {"type": "NFKD"}))
    elif kind == "long":
        token = {"id": 0, "content": "a" * rng.choice((4_999, 10**6)), "normalized": False, "special": True}
        content["added_tokens"] = [token | dict.fromkeys(("single_word", "lstrip", "rstrip"), False)]
        content["decoder"] = {"type": "Replace", "pattern": {"String": "a"}, "content": "x" * rng.choice((20, 900))}
    elif kind == "model" and isinstance(model, dict):
        for field in rng.sample(sorted(MODEL_FIELDS), 2):
            model[field] = rng.choice(MODEL_FIELDS[field])
    elif kind == "order":
        content = {"model": model, **{name: item for name, item in content.items() if name != "model"}}
    text = json.dumps(content, ensure_ascii=rng.random() < 0.5)
    path.write_text(text, encoding="utf-8", errors="surrogatepass")
    return kind


def _bomb(path: Path, outside: Path, rng: Random) -> str:
    """An archive that unzips to a thousand times its size, or whose header says more than it has."""
    size = rng.choice((0, 10**9))
    path.write_bytes(_archive(size))
    return f"{size} zeros"


@functools.cache
def _archive(size: int) -> bytes:
    archive = io.BytesIO()
    header = {"descr": "|u1", "fortran_order": False, "shape": (size or 2**40,)}
    with (
        zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as file,
        file.open("x.npy", "w") as member,
    ):
        np.lib.format.write_array_header_1_0(member, header)
        for _ in range(size // 10**6):
            member.write(bytes(10**6))
    return archive.getvalue()


def _template(path: Path, outside: Path, rng: Random) -> str:
    text = rng.choice(TEMPLATES)
    path.write_text(text)
    return text[:40]


def _by_bytes(path: Path, outside: Path, rng: Random) -> str:
    raw = bytearray(path.read_bytes())
    kind = rng.choice(("flip", "flip", "cut", "insert", "double", "other"))
    at = rng.randrange(len(raw) + 1)
    if kind == "flip":
        for _ in range(rng.choice((1, 1, 3, 30))):
            if raw:
                raw[rng.randrange(len(raw))] = rng.choice((0, 0x22, 0x39, 0x5B, 0x80, 0xFF, rng.randrange(256)))
    elif kind == "cut":
        del raw[at:]
    elif kind == "insert":
        raw[at:at] = rng.choice(
            (b"\0" * 99, b"[" * 10**5, b'"' * 3, b"\xff\xfe", b"[]," * 10**6, b"9" * 9999, rng.randbytes(9))
        )
    elif kind == "double":
        raw *= 2
    else:
        raw = bytearray(rng.choice(OTHERS))
    path.write_bytes(raw)
    return kind


def _in_its_place(path: Path, outside: Path, rng: Random) -> str:
    """Something else in a file's place: nothing, a folder, a pipe, a socket, a device, a link to what is not ours."""
    kind = rng.choice(
        ("gone", "folder", "pipe", "socket", "dangling", "loop", "secret", "zero", "full", "tty", "parent", "copy")
    )
    if kind == "secret" and not {path.name, path.parent.name}.isdisjoint(NAMED_BY_THE_USER):
        kind = "copy"
    if kind in ("pipe", "tty") and path.name in PIPES_ALLOWED:
        kind = "zero"
    path.unlink()
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as server:
            here = Path.cwd()
            os.chdir(path.parent)  # the name of a socket has at most 107 bytes
            try:
                server.bind(path.name)
            finally:
                os.chdir(here)
    elif kind == "copy":
        others = [p for p in sorted(path.parent.iterdir()) if p.is_file() and not p.is_symlink()]
        shutil.copy(rng.choice([p for p in others if p.stat().st_size < LARGEST_CHANGED]), path)
    elif kind != "gone":
        target = {
            "dangling": "nowhere", "loop": path.name, "secret": str(outside / "secret"), "zero": "/dev/zero",
            "full": "/dev/full", "tty": "/dev/tty", "parent": "..",
        }[kind]  # fmt: skip
        path.symlink_to(target)
    return kind


def _beside(folder: Path, outside: Path, rng: Random) -> str:
    """Something that nobody asked for, beside the files."""
    kind = rng.choice(("name", "link", "templates", "pipe", "save", "list", "pickle"))
    if kind == "name":
        Path(os.fsdecode(os.fsencode(folder) + b"/" + rng.choice((b"\xff", b"\x1b[2J", b"a\nb")))).touch()
    elif kind == "link":
        for name in ("merges.txt", "added_tokens.json", "model-00001-of-00001.safetensors"):
            (folder / name).symlink_to(outside / "secret")
    elif kind == "templates":
        (folder / "additional_chat_templates").symlink_to(outside)
    elif kind == "pipe":
        os.mkfifo(folder / rng.choice(("tokenizer.model", "x.safetensors", "special_tokens_map.json")))
    elif kind == "pickle":
        (folder / "pytorch_model.bin").write_bytes(b"\x80\x02}q\x00.")
    elif kind == "save":
        (folder / ".refdiff-save").symlink_to(outside)
    else:
        (folder / ".refdiff-save").mkdir()
        names = rng.choice((["../outside/secret"], ["config.json", "model.safetensors"], [3], {"a": 1}))
        (folder / ".refdiff-save" / "files.json").write_text(json.dumps({"files": names}))
        (folder / ".refdiff-save" / "model.safetensors").symlink_to(outside / "secret")
    return f"beside: {kind}"
