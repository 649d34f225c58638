"""Read the files of checkpoints, traces and manifests within limits, and write them atomically.

Files of a downloaded folder are read through `open_file`. A link that leads out of the folder, a named pipe, a device
or an endless file gives a `CheckpointError` that names it.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import math
import os
import secrets
import shutil
import stat
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from refdiff.errors import CheckpointError, MissingFileError
from refdiff.messages import json_type, show_name

MAX_JSON = 10_000_000
"""The most bytes of a JSON file."""
MAX_VALUES = 1_000_000
"""The most values of a JSON file. Each takes about 60 bytes of memory, however short it is in the file."""
MAX_DEPTH = 100
_CHUNK_BYTES = 2**20
"""Bytes read at a time. Python allocates memory for all requested bytes before it reads. In a browser that memory stays
taken: up to 500 MB, the limit of a tokenizer.json."""

# transformers 5 writes a float that JSON has no word for as {"__float__": "Infinity"}.
_FLOAT_TAG = "__float__"
_TAGGED_FLOATS = {"Infinity": math.inf, "-Infinity": -math.inf, "NaN": math.nan}

_KINDS = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a named pipe", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device",
          stat.S_IFSOCK: "a socket"}  # fmt: skip


def open_file(path: str | os.PathLike[str], *, folder: str | os.PathLike[str] | None = None) -> BinaryIO:
    """Open a regular file to read bytes, without blocking.

    Args:
        path: the file.
        folder: the checkpoint that the file belongs to; a link that leads out of it is refused (see `follow`). None is
            for a file that the user named.

    Raises:
        CheckpointError: the file is missing, not a regular file, outside of `folder`, or cannot be opened.
    """
    try:
        real = Path(path) if folder is None else follow(Path(folder), Path(path))
        _refuse_special(path, real.stat().st_mode)
        # A pipe may take the file's place after the check: open without blocking, and check the open file again.
        flags = os.O_RDONLY
        for name in ("O_NONBLOCK", "O_NOCTTY", "O_BINARY", *(() if folder is None else ("O_NOFOLLOW",))):
            flags |= getattr(os, name, 0)
        descriptor = os.open(real, flags)
    except (FileNotFoundError, NotADirectoryError):
        raise MissingFileError(f"{path}: no such file") from None
    except CheckpointError:
        raise
    except (OSError, ValueError) as error:  # ValueError: a null byte in the name
        raise CheckpointError(f"{path}: cannot be opened: {getattr(error, 'strerror', None) or error}") from None
    try:
        _refuse_special(path, os.fstat(descriptor).st_mode)
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def read_bytes(path: str | os.PathLike[str], *, max_bytes: int, folder: str | os.PathLike[str] | None = None) -> bytes:
    """Read a whole file of at most `max_bytes`; see `open_file`.

    Raises:
        CheckpointError: as `open_file`; or the file is larger, or cannot be read.
    """
    with open_file(path, folder=folder) as file:
        size = os.fstat(file.fileno()).st_size  # a file that grows has more, and one of /proc says 0
        try:
            chunks = iter(lambda: file.read(_CHUNK_BYTES), b"")
            raw = b"" if size > max_bytes else b"".join(itertools.islice(chunks, max_bytes // _CHUNK_BYTES + 1))
        except OSError as error:
            raise CheckpointError(f"{path}: cannot be read: {error.strerror or error}") from None
    if max(size, len(raw)) > max_bytes:
        raise CheckpointError(f"{path}: larger than {max_bytes:,} bytes, the most that is read of such a file")
    return raw


def read_text(path: str | os.PathLike[str], *, max_bytes: int, folder: str | os.PathLike[str] | None = None) -> str:
    """Read a whole UTF-8 file of at most `max_bytes`; see `open_file`.

    Raises:
        CheckpointError: as `read_bytes`; or the file is not UTF-8.
    """
    try:
        return read_bytes(path, max_bytes=max_bytes, folder=folder).decode("utf-8")
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path}: not UTF-8 text (byte {error.start}); write the file again as UTF-8") from None


def read_json(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a JSON file whose top level is an object; links are followed within the file's own folder.

    Raises:
        CheckpointError: as `read_text`; or the file is not JSON, nested deeper than 100 levels, has more than a million
            values, or has a key twice in one object.
    """
    text = read_text(path, max_bytes=MAX_JSON, folder=Path(path).parent)
    if sum(map(text.count, ",:[{")) > MAX_VALUES:
        raise CheckpointError(f"{path}: more than {MAX_VALUES:,} values, the most that is read of such a file")
    value = parse_json(text, path, _parse_object)
    if _depth(value) > MAX_DEPTH:
        raise CheckpointError(f"{path}: nested too deeply; at most {MAX_DEPTH} levels are read")
    return value


def parse_json(
    text: str, path: str | os.PathLike[str], object_pairs_hook: Callable[[list[tuple[str, Any]]], Any]
) -> dict[str, Any]:
    """Parse the text of the JSON file `path`; the hook makes the objects, as `unique_keys` does.

    Raises:
        CheckpointError: the text is not JSON, or nested too deeply for Python; its top level is no object; or the hook
            refuses an object.
    """
    try:
        value = json.loads(text, object_pairs_hook=object_pairs_hook)
    except json.JSONDecodeError as error:
        raise CheckpointError(
            f"{path}: not valid JSON: {error.msg} at line {error.lineno}, column {error.colno}{_content_hint(text)}"
        ) from None
    except RecursionError:
        raise CheckpointError(f"{path}: nested too deeply") from None
    except _DuplicateKeyError as error:
        raise CheckpointError(f"{path}: {error}") from None
    except ValueError:  # Python refuses to parse integers of thousands of digits
        raise CheckpointError(f"{path}: holds an integer of more than 4300 digits") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: the top level: got {json_type(value)}, expected an object {{...}}")
    return value


def read_optional_json(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a JSON file as `read_json` does; an empty object if there is none. A link to nothing is an error.

    Raises:
        CheckpointError: as `read_json`.
    """
    return read_json(path) if os.path.lexists(path) else {}


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return a JSON object; raise `ValueError` if it has a key twice, where Python would drop a value."""
    result = dict(pairs)
    if len(result) != len(pairs):
        name = show_name(Counter(key for key, _ in pairs).most_common(1)[0][0])
        raise _DuplicateKeyError(f"the key {name} stands twice in one object; keep one of them")
    return result


def expand_home(path: str) -> Path:
    """Return a path with a leading `~` or `~user` replaced by the home folder, or as it is if there is none."""
    return Path(os.path.expanduser(path))  # noqa: PTH111, Path.expanduser raises an error without the path


def output_folder(directory: str | os.PathLike[str]) -> Path:
    """Return the folder that a user names to write to; an empty name is not the current folder.

    Raises:
        TypeError: no path.
        ValueError: an empty name.
    """
    given: Any = directory
    if not isinstance(given, str | os.PathLike):
        raise TypeError(f"save_directory: got {given!r}, expected the name of a folder")
    if not os.fspath(given):
        raise ValueError('save_directory: got an empty name, expected that of a folder; "." is the current one')
    return expand_home(os.fspath(given))


def finite_float(text: str) -> float:
    """Parse a JSON number; raise `ValueError` if it overflows, where Python would return infinity."""
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"{text[:40]} is beyond the largest number, 1.8e308")
    return value


def lock(file: int | BinaryIO, *, wait: bool) -> bool:
    """Lock an open file or folder until it is closed; return False if another process has the lock.

    With `wait`, wait for the other process. Windows and some file systems have no locks: there nothing is locked, and
    the result is True.
    """
    try:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except (ImportError, OSError):
        pass
    return True


def copy_file(source: Path, target: Path, *, folder: Path) -> None:
    """Copy a file of the checkpoint `folder` to a new file; see `open_file`.

    Raises:
        CheckpointError: as `open_file`.
        OSError: `target` is there already, or cannot be written.
    """
    with open_file(source, folder=folder) as file, target.open("xb") as copy:
        shutil.copyfileobj(file, copy)


def write_json(path: str | os.PathLike[str], value: dict[str, Any]) -> None:
    """Write `value` as transformers formats its JSON files (two spaces, sorted keys), atomically.

    Raises:
        OSError: the folder cannot be written; an older file at `path` is then untouched.
    """
    text = json.dumps(_tag_floats(value), indent=2, sort_keys=True) + "\n"
    write_atomically(path, text.encode("ascii"), follow_link=False)


def write_atomically(path: str | os.PathLike[str], data: bytes, *, follow_link: bool = True) -> None:
    """Put `data` at `path` in one step: a temporary file in the same folder, synced to disk, then renamed.

    See `replace_atomically`.

    Raises:
        OSError: the file cannot be written; the message names `path`, and an older file there is untouched.
    """
    with replace_atomically(path, follow_link=follow_link) as file:
        file.write(data)


@contextlib.contextmanager
def replace_atomically(path: str | os.PathLike[str], *, follow_link: bool = True) -> Iterator[BinaryIO]:
    """Yield a new file to write; it replaces `path` at the end of the block, and is deleted if the block raises.

    It gets the permissions of the file that it replaces. If `path` is a symbolic link, it replaces the target of the
    link, or with `follow_link=False` the link itself. The latter is for checkpoints: in Hugging Face's cache their
    files are links to blobs that other revisions share.

    Raises:
        OSError: `path` cannot be written, or is there and not a regular file; the message names it.
    """
    path = Path(path)
    target = Path(os.path.realpath(path)) if follow_link else path
    temporary = target.with_name(f".{secrets.token_hex(8)}.tmp")
    try:
        if target.exists() and not target.is_file():
            message = f"not a regular file, but {kind_of_file(target.stat().st_mode)}; name another file"
            raise OSError(errno.EINVAL, message, str(path))
        with temporary.open("xb") as file:
            if target.exists():
                shutil.copymode(target, temporary)
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename in (None, str(temporary)):
            error.filename = str(path)
        raise


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[None]:
    """Make a folder and its parents; if the block raises, remove those of them that are new and empty."""
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]  # innermost first
    try:
        path.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException:
        with contextlib.suppress(OSError):  # the error of the block is the one to raise
            for folder in missing:
                folder.rmdir()
        raise


def check_name(folder: Path, name: str) -> None:
    """Refuse a name that is not the plain name of a file in this folder; it need not exist.

    Raises:
        CheckpointError: the name has a directory in it, or unprintable characters.
    """
    if name in ("", ".", "..") or not name.isprintable() or any(character in name for character in "/\\:"):
        raise CheckpointError(f"{folder}: {ascii(name)[:80]} is not a plain name of a file in this folder")


def follow(folder: Path, path: Path) -> Path:
    """Resolve all symbolic links of `path`, a file in `folder`; refuse links that lead out of `folder`.

    Hugging Face's cache is the exception: there `snapshots/<revision>/…/<name>` is a link to `blobs/<hash>`
    of the same repository, or from huggingface_hub 2 on further to `blobs/<2 digits>/<hash>` of the whole cache.

    Raises:
        CheckpointError: a link leads elsewhere.
    """
    root, real = Path(os.path.realpath(folder)), Path(os.path.realpath(path))
    blobs: list[Path] = []
    snapshots = next((parent for parent in root.parents if parent.name == "snapshots"), None)
    if snapshots is not None:  # `root` is one of them, or a subfolder of one
        repo = snapshots.parent
        blobs = [repo / "blobs", repo.parent / "blobs" / real.name[:2]]
    if root not in real.parents and real.parent not in blobs:
        raise CheckpointError(
            f"{folder}: {ascii(path.name)[:80]} is a link that leads out of the folder and is not followed; "
            "put the file itself, or a hard link to it, into the folder"
        )
    return real


def _refuse_special(path: str | os.PathLike[str], mode: int) -> None:
    if not stat.S_ISREG(mode):
        raise CheckpointError(f"{path}: not a regular file, but {kind_of_file(mode)}; put the file itself there")


def kind_of_file(mode: int) -> str:
    """Name the kind of a path that is not a regular file, from its `st_mode`."""
    return _KINDS.get(stat.S_IFMT(mode), "something else")


class _DuplicateKeyError(ValueError):
    pass


def _parse_object(pairs: list[tuple[str, Any]]) -> Any:
    result = unique_keys(pairs)
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


def _content_hint(text: str) -> str:
    if not text.strip():
        return "; the file is empty, so download or write it again"
    if text.startswith("\ufeff"):
        return "; the file begins with a byte order mark: write it again as UTF-8 without one"
    if text.startswith("version https://git-lfs"):
        return "; this is a git-lfs pointer, not the file itself: run `git lfs pull`"
    if text.lstrip().startswith("<"):
        return "; this looks like a web page saved in place of the file: download it again"
    return ""
