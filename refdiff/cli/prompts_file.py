"""Many prompts from one file → JSON lines: shards, a progress bar, and going on where an earlier run was stopped."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import stat
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from refdiff.cli.flags import UsageError
from refdiff.cli.generate_flags import NUMBERS
from refdiff.cli.terminal import note, one_line

_OPENING = b'{"index": '  # of every line
_SYNC_EVERY = 1.0  # seconds; a killed process loses nothing that was flushed, a power cut at most this much


@dataclass(frozen=True)
class Prompt:
    """One prompt of the file: its place among the prompts, its text, and what it sets for itself."""

    index: int
    text: str
    id: object = None
    options: dict[str, Any] = field(default_factory=dict)


def read_prompts(path: str) -> list[Prompt]:
    """Read a prompts file: one prompt a line, or JSONL; empty lines do not count.

    A file is JSONL if its name ends in .jsonl or its first line is a JSON object. All of it is checked before the
    model is loaded.

    Raises:
        UsageError: a line that is no prompt; names file and line.
    """
    raw = sys.stdin.buffer.read() if path == "-" else Path(path).read_bytes()
    name = "standard input" if path == "-" else path
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise UsageError(f"{name} line {line}: not UTF-8; convert the file, for instance with iconv") from None
    # Only a newline ends a line: U+2028 and the like are text, and JSON leaves them as they are.
    numbered = [(i, line.removesuffix("\r")) for i, line in enumerate(text.split("\n"), 1) if line.strip()]
    if not numbered:
        raise UsageError(f"{name}: no prompts in it; give one a line")
    if not (path.endswith(".jsonl") or _is_object(numbered[0][1])):
        return [Prompt(index, line) for index, (_, line) in enumerate(numbered)]
    prompts, ignored = [], {}
    for index, (number, line) in enumerate(numbered):
        where = f"{name} line {number}"
        prompt, others = _from_json(index, line, where)
        prompts.append(prompt)
        ignored.update(dict.fromkeys(others))
    if ignored:
        note(f"refdiff: warning: {name}: fields without a meaning here, ignored: {', '.join(ignored)}")
    return prompts


def _is_object(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False


def _from_json(index: int, line: str, where: str) -> tuple[Prompt, list[str]]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise UsageError(f"{where}: not JSON: {error}") from None
    if not isinstance(row, dict):
        raise UsageError(f'{where}: not an object; give {{"prompt": "..."}}')
    others = [key for key in row if key not in NUMBERS and key not in ("prompt", "text", "id", "system", "stop")]
    row = {key: value for key, value in row.items() if value is not None}  # null: not given
    text = row.get("prompt", row.get("text"))
    if not isinstance(text, str):
        raise UsageError(f'{where}: needs a field "prompt" (or "text") that is a string')
    options: dict[str, Any] = {}
    for key, value in row.items():
        if key in NUMBERS:
            try:
                options[key] = NUMBERS[key].check(value)
            except argparse.ArgumentTypeError as error:
                raise UsageError(f"{where}: {key}: {error}") from None
    if "system" in row:
        if not isinstance(row["system"], str):
            raise UsageError(f"{where}: system: {row['system']!r} is not a string")
        options["system"] = row["system"]
    if "stop" in row:
        stop = [row["stop"]] if isinstance(row["stop"], str) else row["stop"]
        if not isinstance(stop, list) or not all(isinstance(s, str) and s for s in stop):
            raise UsageError(f"{where}: stop: {row['stop']!r} is neither a string nor a list of strings, none empty")
        options["stop"] = stop
    return Prompt(index, text, row.get("id"), options), others


def run(
    prompts: list[Prompt],
    args: argparse.Namespace,
    given: dict[str, Any],
    load: Callable[[], Callable[[Prompt, int], dict[str, Any]]],
) -> int:
    """Answer this shard's prompts that have no answer yet; load() → complete(prompt, seed) → fields of a line.

    `given` are the command line's options of generation. A prompt that fails is reported on standard error, leaves no
    line, and is tried again by the next run; the exit status is then 1.
    """
    if args.output == "-":
        args.output = None
    base = 0 if args.seed is None else args.seed
    shard = [p for p in prompts if p.index % args.num_shards == args.shard_index]
    seeds = {p.index: p.options.get("seed", base + p.index) for p in shard}
    runs = {p.index: _digest(args, {**given, **p.options}) for p in shard}
    with _output(args.output, {p.index: p for p in prompts}, seeds, runs) as (file, done):
        left = [p for p in shard if p.index not in done]
        if done and not args.quiet:
            note(f"refdiff: {len(shard) - len(left)} of {len(shard)} prompts are in {args.output} already")
        if not left:
            return 0
        return _answer(left, seeds, runs, load(), file, args)


def _digest(args: argparse.Namespace, given: dict[str, Any]) -> str:
    """A few letters that differ where the model, the form of the prompt or the options of generation differ."""
    local = args.model is not None and Path(args.model).expanduser().is_dir()
    what = {
        **{name: value for name, value in given.items() if name not in ("seed", "system")},
        "model": str(Path(args.model).expanduser().resolve()) if local else args.model,
        "dtype": args.dtype,
        "system": given.get("system", args.system) if args.chat else None,
        "chat": args.chat,
        "echo": args.echo,
    }
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:12]


def _answer(
    prompts: list[Prompt],
    seeds: dict[int, int],
    runs: dict[int, str],
    complete: Callable[[Prompt, int], dict[str, Any]],
    file: BinaryIO,
    args: argparse.Namespace,
) -> int:
    from tqdm import tqdm

    failed = answered = tokens = 0
    started = synced = time.monotonic()
    # disable=None: only on a terminal
    with tqdm(total=len(prompts), unit="prompt", disable=True if args.quiet else None, file=sys.stderr) as bar:
        try:
            for prompt in prompts:
                try:
                    fields = complete(prompt, seeds[prompt.index])
                except (ValueError, FloatingPointError) as error:
                    if args.debug:
                        raise
                    failed += 1
                    bar.clear()
                    note(f"refdiff generate: error: prompt {prompt.index}: {one_line(error)}")
                    bar.update()
                    continue
                row = {
                    "index": prompt.index,
                    "id": prompt.id,
                    "prompt": prompt.text,
                    **fields,
                    "run": runs[prompt.index],
                }
                if prompt.id is None:
                    del row["id"]
                file.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")
                file.flush()
                if args.output and time.monotonic() - synced > _SYNC_EVERY:
                    _sync(file)
                    synced = time.monotonic()
                answered += 1
                tokens += fields["generated_tokens"]
                bar.update()
        except KeyboardInterrupt:
            bar.close()
            again = "; the same command goes on from here" if args.output else ""
            note(f"refdiff: {answered} of {len(prompts)} prompts answered{again}")
            raise
    if not args.quiet:
        seconds = time.monotonic() - started
        note(f"{answered} prompt{'s' * (answered != 1)} answered, {failed} failed; {tokens} tokens in {seconds:.1f} s")
    return 1 if failed else 0


@contextmanager
def _output(
    path: str | None, prompts: dict[int, Prompt], seeds: dict[int, int], runs: dict[int, str]
) -> Iterator[tuple[BinaryIO, set[int]]]:
    """Open the output for appending, and tell which prompts it answers already; a half-written last line is removed."""
    if path is None:
        yield sys.stdout.buffer, set()
        return
    with open(path, "ab+") as file:  # noqa: PTH123, there is one way to open in this mode
        _lock(file, path)
        file.seek(0)
        done, end = set(), 0
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):  # the run was killed while it wrote this line
                if not (line.startswith(_OPENING) or _OPENING.startswith(line)):
                    raise UsageError(f"{path} line {number}: not a line that generate wrote; give another -o")
                file.truncate(end)
                break
            end += len(line)
            if line.strip():
                done.add(_check_answer(line, f"{path} line {number}", prompts, seeds, runs))
        file.seek(0, os.SEEK_END)
        yield file, done
        file.flush()
        _sync(file)


def _sync(file: BinaryIO) -> None:
    """Have the system write what it holds to the disk, if there is one behind the file."""
    if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        os.fsync(file.fileno())


def _check_answer(
    line: bytes, where: str, prompts: dict[int, Prompt], seeds: dict[int, int], runs: dict[int, str]
) -> int:
    """The index of the prompt that this line answers; refuses a line that answers something else."""
    try:
        row = json.loads(line)
        index, text, seed = row["index"], row["prompt"], row["seed"]
    except (ValueError, KeyError, TypeError):
        raise UsageError(f"{where}: not a line that generate wrote; give another -o") from None
    if not isinstance(index, int) or index not in prompts or prompts[index].text != text:
        raise UsageError(f"{where}: answers a prompt that is not at index {index} of the prompts; give another -o")
    if seeds.get(index, seed) != seed:
        raise UsageError(f"{where}: has seed {seed}, this run would use {seeds[index]}; give the same -s or another -o")
    if index in runs and row.get("run") != runs[index]:
        raise UsageError(
            f"{where}: is of another model, --dtype or options of generation; give the same ones or another -o"
        )
    return index


def _lock(file: BinaryIO, path: str) -> None:
    """Keep a second run away from this file for as long as it is open."""
    try:
        import fcntl
    except ImportError:  # Windows
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UsageError(f"{path}: another run is writing to it; wait for it or give another -o") from None
    except OSError:  # a file system without locks
        return
