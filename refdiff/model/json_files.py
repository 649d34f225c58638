"""The small JSON files of a checkpoint: read within limits, written so that a crash leaves the old file or the new."""

from __future__ import annotations

import json
import math
import os
import secrets
import stat
from collections import Counter
from pathlib import Path
from typing import Any

from refdiff.errors import CheckpointError
from refdiff.model.messages import json_type, show_name

MAX_BYTES = 10_000_000
MAX_DEPTH = 100

# transformers 5 writes a float that JSON has no word for as {"__float__": "Infinity"}.
_FLOAT_TAG = "__float__"
_TAGGED_FLOATS = {"Infinity": math.inf, "-Infinity": -math.inf, "NaN": math.nan}


def read_json(path: str | os.PathLike[str], *, max_bytes: int = MAX_BYTES) -> dict[str, Any]:
    """Read a JSON file whose top level is an object.

    Raises `CheckpointError`, naming the file, for a missing file, one that is not a regular file, larger than
    `max_bytes`, not UTF-8, not JSON, nested deeper than 100 levels, or with a key given twice.
    """
    raw = _read_regular_file(path, max_bytes)
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path}: not UTF-8 text (byte {error.start}); write the file again as UTF-8") from None
    try:
        value = json.loads(text, object_pairs_hook=_object)
    except json.JSONDecodeError as error:
        raise CheckpointError(
            f"{path}: not valid JSON: {error.msg} at line {error.lineno}, column {error.colno}{_guess(raw)}"
        ) from None
    except RecursionError:
        raise CheckpointError(f"{path}: nested too deeply; at most {MAX_DEPTH} levels are read") from None
    except _DuplicateKeyError as error:
        raise CheckpointError(f"{path}: the key {error} stands twice in one object; keep one of them") from None
    except ValueError:  # Python refuses to parse integers of thousands of digits
        raise CheckpointError(f"{path}: holds an integer of more than 4300 digits") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: the top level is {json_type(value)}, but must be an object {{...}}")
    if _depth(value) > MAX_DEPTH:
        raise CheckpointError(f"{path}: nested too deeply; at most {MAX_DEPTH} levels are read")
    return value


def write_json(path: str | os.PathLike[str], value: dict[str, Any]) -> None:
    """Write `value` as transformers formats its JSON files (two spaces, sorted keys), atomically.

    Raises `OSError` when the folder cannot be written; an older file at `path` is then untouched.
    """
    path = Path(path)
    text = json.dumps(_tag_floats(value), indent=2, sort_keys=True) + "\n"
    write_atomically(path, text.encode("ascii"))


def write_atomically(path: Path, data: bytes) -> None:
    """Put `data` at `path` in one step: a temporary file in the same folder, synced to disk, then renamed."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


class _DuplicateKeyError(Exception):
    pass


def _object(pairs: list[tuple[str, Any]]) -> Any:
    result = dict(pairs)
    if len(result) != len(pairs):
        counts = Counter(key for key, _ in pairs)
        raise _DuplicateKeyError(show_name(counts.most_common(1)[0][0]))
    if len(result) == 1 and isinstance(tag := result.get(_FLOAT_TAG), str):
        return _TAGGED_FLOATS.get(tag, result)
    return result


def _tag_floats(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return {_FLOAT_TAG: next(tag for tag, special in _TAGGED_FLOATS.items() if repr(special) == repr(value))}
    if isinstance(value, dict):
        return {str(key): _tag_floats(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_tag_floats(item) for item in value]
    return value


def _depth(value: Any) -> int:
    deepest, open_items = 0, [(value, 1)]
    while open_items:
        item, depth = open_items.pop()
        if isinstance(item, dict | list):
            deepest = max(deepest, depth)
            open_items += [(child, depth + 1) for child in (item.values() if isinstance(item, dict) else item)]
    return deepest


def _read_regular_file(path: str | os.PathLike[str], max_bytes: int) -> bytes:
    # O_NONBLOCK, and the check on the open file: a FIFO put in place of the file must not make us wait for a writer.
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except (FileNotFoundError, NotADirectoryError):
        raise CheckpointError(f"{path}: no such file") from None
    except (OSError, ValueError) as error:  # ValueError: a null byte in the name
        raise CheckpointError(f"{path}: cannot be opened: {getattr(error, 'strerror', None) or error}") from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise CheckpointError(f"{path}: not a regular file")
    with os.fdopen(descriptor, "rb") as file:
        raw = file.read(max_bytes + 1)
    if len(raw) > max_bytes:
        raise CheckpointError(f"{path}: larger than {max_bytes:,} bytes, the most that is read of such a file")
    return raw


def _guess(raw: bytes) -> str:
    if not raw.strip():
        return "; the file is empty, so download or write it again"
    if raw.startswith(b"version https://git-lfs"):
        return "; this is a git-lfs pointer, not the file itself: run `git lfs pull`"
    if raw.lstrip().startswith(b"<"):
        return "; this looks like a web page saved in place of the file: download it again"
    return ""
