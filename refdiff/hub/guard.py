"""Bounds on the answers of a hub: `HF_ENDPOINT` may name any server, and huggingface_hub trusts it.

An ETag such as `../../x` becomes a path to write to, `Retry-After: 1000000` a pause, an endless answer a full disk.
Inside `checked_answers`, every answer is checked before huggingface_hub acts on it. Its own timeouts end a silence.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any
from urllib.parse import urljoin, urlsplit

STALLED, PROGRESS = 30.0, 30_000  # seconds in which an answer has to end, or to bring so many bytes more
MAX_INFO, MAX_ERROR, MAX_JSON, MAX_TOKENIZER = 4_000_000, 1_000_000, 10_000_000, 500_000_000  # bytes

_COMMIT = re.compile(r"[0-9a-f]{40}")
_ETAG = re.compile(r'(?:W/)?"?[0-9a-f]{40,64}"?')
_max_bytes: ContextVar[int | None] = ContextVar("max_bytes", default=None)


class BadAnswerError(ConnectionError):
    """The server's answer is not that of a hub."""


def download(
    repo: str, name: str, *, revision: str, cache_dir: str | None, token: str | bool | None = None, force: bool = False
) -> Path:
    """Download a file into huggingface_hub's cache, unless it is there; return its path."""
    from huggingface_hub import hf_hub_download

    with checked_answers(_limit_of(name)):
        return Path(
            hf_hub_download(repo, name, revision=revision, cache_dir=cache_dir, token=token, force_download=force)
        )


@contextmanager
def checked_answers(max_bytes: int) -> Iterator[None]:
    """Check the answers to huggingface_hub's requests in the block, and refuse longer ones with `BadAnswerError`."""
    _install()
    token = _max_bytes.set(max_bytes)
    try:
        yield
    finally:
        _max_bytes.reset(token)


def _install() -> None:
    """Add the checks to the HTTP client of huggingface_hub; outside of `checked_answers` they have no effect."""
    from huggingface_hub import set_client_factory
    from huggingface_hub.utils import _http

    http: Any = _http
    make_client = http._GLOBAL_CLIENT_FACTORY  # may be the user's own, with a proxy; it has no public name
    if getattr(make_client, "is_checked", False):
        return

    def make_checked_client() -> Any:
        client = make_client()
        hooks = client.event_hooks
        client.event_hooks = {
            "request": [*hooks["request"], _ask_plain],
            "response": [*hooks["response"], _check_response],
        }
        return client

    make_checked_client.is_checked = True  # type: ignore[attr-defined]
    set_client_factory(make_checked_client)


def _ask_plain(request: Any) -> None:
    if _max_bytes.get() is not None:
        request.headers["Accept-Encoding"] = "identity"


def _check_response(response: Any) -> None:
    max_bytes, headers = _max_bytes.get(), response.headers
    if max_bytes is None:
        return
    commit = headers.get("X-Repo-Commit")
    if commit is not None and not _COMMIT.fullmatch(commit):
        raise BadAnswerError(f"the commit {ascii(commit)[:80]} is not a hash")
    if commit is not None and response.request.method == "HEAD" and response.status_code < 400:
        url = str(response.request.url)
        target = urlsplit(urljoin(url, headers.get("Location", url)))
        if target.netloc == urlsplit(url).netloc and response.status_code >= 300:
            headers.pop("X-Linked-Etag", None)  # huggingface_hub follows this redirect itself
            headers.pop("ETag", None)
        else:
            _check_file(max_bytes, headers, is_redirect=response.status_code >= 300)
    for name in ("X-HF-Warning", "Retry-After", "RateLimit"):  # text for the terminal; a pause of days
        headers.pop(name, None)
    encoding = headers.get("Content-Encoding", "identity").lower()
    if encoding != "identity":
        raise BadAnswerError(f"the answer is encoded as {ascii(encoding)[:40]}")
    _bound_body(response, max_bytes if response.status_code in (200, 206) else MAX_ERROR)


def _check_file(max_bytes: int, headers: Any, *, is_redirect: bool) -> None:
    """Check a hub's description of a file, from which huggingface_hub makes paths in its cache."""
    from huggingface_hub import constants

    etag = headers.get("X-Linked-Etag") or headers.get("ETag") or ""
    if not _ETAG.fullmatch(etag):
        raise BadAnswerError(f"the ETag {ascii(etag)[:80]} is not a hash")
    size = headers.get("X-Linked-Size") or (None if is_redirect else headers.get("Content-Length"))
    if size is not None:
        if not re.fullmatch(r"\d{1,18}", size) or int(size) > max_bytes:
            raise BadAnswerError(f"the file has {ascii(size)[1:-1][:40]} bytes, expected at most {max_bytes:,}")
        _max_bytes.set(int(size))
    if urlsplit(constants.ENDPOINT).hostname != "huggingface.co":
        # Xet's own client, unchecked here, asks any server that the hub names. Every hub also sends files by HTTP.
        headers.pop("X-Xet-Hash", None)


def _bound_body(response: Any, max_bytes: int) -> None:
    """Raise an error when the body has more bytes."""
    inner = response.stream

    class Stream(next(kind for kind in type(inner).__mro__ if kind.__name__ == "SyncByteStream")):  # type: ignore[misc]
        def __iter__(self) -> Iterator[bytes]:
            count, due, deadline = 0, PROGRESS, time.monotonic() + STALLED
            for chunk in inner:  # within huggingface_hub's timeout for each
                count += len(chunk)
                if count >= due:
                    due, deadline = count + PROGRESS, time.monotonic() + STALLED
                elif time.monotonic() > deadline:
                    raise TimeoutError("the hub takes too long")
                if count > max_bytes:
                    raise BadAnswerError(f"the answer is longer than {max_bytes:,} bytes")
                yield chunk

        def close(self) -> None:
            inner.close()

    response.stream = Stream()


def _limit_of(name: str) -> int:
    if name.endswith(".safetensors"):
        return 2**63
    is_vocabulary = name in ("tokenizer.json", "vocab.json", "added_tokens.json")
    return MAX_JSON if name.endswith(".json") and not is_vocabulary else MAX_TOKENIZER
