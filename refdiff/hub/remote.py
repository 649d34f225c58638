"""Download a checkpoint without its weights: kilobytes instead of gigabytes."""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from refdiff.checkpoint_files import INDEX, WEIGHT_FILES
from refdiff.errors import CheckpointError
from refdiff.hub.download import choose, list_repo, snapshot
from refdiff.hub.explain import explain_errors
from refdiff.hub.guard import BadAnswerError, Limits, call_bounded, download

# Most headers are shorter than the first number: one request suffices. Headers above the second are not read.
_FIRST_BYTES = 100_000
_MAX_HEADER_BYTES = 25_000_000
_MAX_FILE_BYTES = 10**13
_MAX_TENSOR_BYTES = 10_000_000
_GAP_BYTES = 65_536
_LAMBDA_VECTOR = re.compile(r"\.lambda_[qk][12]$")


@contextmanager
def outline(
    path_or_repo: str | os.PathLike[str], *, files: Sequence[str], local_files_only: bool = False
) -> Iterator[Path]:
    """Yield a folder with a checkpoint's files; the weight files in it have only their header, size and λ vectors.

    A local folder, or a repo whose weights are in the cache, is yielded as it is. For any other repo, `files` without
    the weights are downloaded, and each safetensors file is a sparse copy: it has the header, the vectors of λ, and
    zeros elsewhere. The end of the `with` block deletes the copies.

    Raises:
        CheckpointError: as in `snapshot`.
    """
    try:
        folder = snapshot(path_or_repo, files=files, local_files_only=True)
    except CheckpointError:
        if local_files_only:
            raise
    else:
        yield folder
        return
    repo = str(path_or_repo)
    others = snapshot(path_or_repo, files=[name for name in files if name not in WEIGHT_FILES])
    with explain_errors(repo):
        names, commit = list_repo(repo, others.name)
    with tempfile.TemporaryDirectory(prefix=f"outline-{repo.replace('/', '--')}-") as temporary:
        target = Path(temporary)
        for path in others.rglob("*"):
            copy = target / path.relative_to(others)
            if path.is_file() and not path.name.endswith(".safetensors"):
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, copy)

        def fetch(name: str) -> Path:
            with explain_errors(f"{repo}: {name}"):
                cached = download(repo, name, revision=commit, cache_dir=None)
                return Path(shutil.copyfile(cached, target / name))

        for name in choose(names, WEIGHT_FILES, repo, fetch):
            if name != INDEX:
                with explain_errors(f"{repo}: {name}"), (target / name).open("wb") as file:
                    _write_outline(file, repo, name, commit)
        yield target


def _write_outline(file: BinaryIO, repo: str, name: str, commit: str) -> None:
    first, size = _read_range(repo, name, commit, 0, _FIRST_BYTES)
    file.truncate(size)
    file.write(first)
    end = 8 + int.from_bytes(first[:8], "little")
    if end > min(size, _MAX_HEADER_BYTES):
        return  # not a safetensors file; the reader of the outline reports that
    if end > len(first):
        rest, _ = _read_range(repo, name, commit, len(first), end)
        file.write(rest)
        first += rest
    for begin, stop in _ranges(first[8:end], end, size):
        if stop > len(first):
            piece, _ = _read_range(repo, name, commit, begin, stop)
            file.seek(begin)
            file.write(piece)


def _ranges(header: bytes, data: int, size: int) -> list[tuple[int, int]]:
    """Return the byte ranges of the λ vectors, with neighbors merged so that few requests are made."""
    try:
        entries = json.loads(header).items()
        found = sorted(
            (data + int(entry["data_offsets"][0]), data + int(entry["data_offsets"][1]))
            for name, entry in entries
            if _LAMBDA_VECTOR.search(name)
        )
    except (ValueError, RecursionError, LookupError, TypeError, AttributeError):
        return []  # a broken header, which the reader of the outline reports
    merged: list[tuple[int, int]] = []
    for begin, stop in found:
        if merged and begin - merged[-1][1] <= _GAP_BYTES:
            merged[-1] = (merged[-1][0], max(stop, merged[-1][1]))
        else:
            merged.append((begin, stop))
    sound = all(data <= begin <= stop <= size for begin, stop in merged)
    return merged if sound and sum(stop - begin for begin, stop in merged) <= _MAX_TENSOR_BYTES else []


def _read_range(repo: str, name: str, commit: str, begin: int, end: int) -> tuple[bytes, int]:
    """Read the bytes from `begin` up to `end` or the end of the file; return them and the size of the file."""
    from huggingface_hub import constants, hf_hub_url, utils

    http: Any = utils  # its functions are public, but not declared so for type checkers
    headers = {**http.build_hf_headers(), "Range": f"bytes={begin}-{end - 1}"}
    options = {"headers": headers, "timeout": constants.HF_HUB_DOWNLOAD_TIMEOUT, "follow_redirects": True}

    def read() -> tuple[bytes, int]:
        with http.get_session().stream("GET", hf_hub_url(repo, name, revision=commit), **options) as response:
            if response.status_code >= 400:
                response.read()
                http.hf_raise_for_status(response)
            sent = response.headers.get("Content-Range", "")
            if response.status_code != 206 or not sent.startswith(f"bytes {begin}-"):
                raise CheckpointError(
                    f"{repo}: {name}: the server does not send parts of a file; download the checkpoint to look at it"
                )
            match = re.fullmatch(r"bytes \d{1,15}-(\d{1,15})/(\d{1,15})", sent)
            if match is None or not begin <= int(match[1]) < int(match[2]) <= _MAX_FILE_BYTES:
                raise BadAnswerError(f"got the range {ascii(sent)[:80]}, which no file on a hub has")
            return response.read(), int(match[2])

    content, size = call_bounded(read, Limits(end - begin))
    if len(content) < min(end, size) - begin:
        raise ConnectionError(f"got {len(content)} of {min(end, size) - begin} bytes")
    return content, size
