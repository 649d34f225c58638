"""Bounds on the answers of a hub: `HF_ENDPOINT` may name any server, and huggingface_hub trusts it.

An ETag such as `../../x` becomes a path to write to, `Retry-After: 1000000` a pause, an endless answer a full disk.
Inside `call_bounded`, every answer is checked before huggingface_hub acts on it, and the call has a deadline.
"""

from __future__ import annotations

import math
import queue
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urljoin, urlsplit

SECONDS = 120.0  # for one call, without the time for a file's bytes
BYTES_PER_SECOND = 20_000  # the slowest connection that a deadline allows for
STALLED, PROGRESS = 30.0, 30_000  # seconds for an answer to begin, and then for so many bytes, or its end
MAX_INFO, MAX_ERROR, MAX_JSON, MAX_TOKENIZER = 4_000_000, 1_000_000, 10_000_000, 500_000_000  # bytes

_COMMIT = re.compile(r"[0-9a-f]{40}")
_ETAG = re.compile(r'(?:W/)?"?[0-9a-f]{40,64}"?')
_T = TypeVar("_T")


class BadAnswerError(ConnectionError):
    """The server's answer is not that of a hub."""


@dataclass
class Limits:
    """The limits for the answers to one call."""

    max_bytes: int
    deadline: float = field(default_factory=lambda: time.monotonic() + SECONDS)
    step: float = math.inf

    def left(self) -> float:
        """Return the seconds until the deadline of the call, or of the answer that is awaited or read."""
        return min(self.deadline, self.step) - time.monotonic()


_limits: ContextVar[Limits | None] = ContextVar("limits", default=None)


def download(
    repo: str, name: str, *, revision: str, cache_dir: str | None, token: str | bool | None = None, force: bool = False
) -> Path:
    """Download a file into huggingface_hub's cache, unless it is there; return its path."""
    from huggingface_hub import hf_hub_download

    options: dict[str, Any] = {"revision": revision, "cache_dir": cache_dir, "token": token, "force_download": force}
    return Path(call_bounded(lambda: hf_hub_download(repo, name, **options), Limits(_max_bytes(name))))


def call_bounded(call: Callable[[], _T], limits: Limits) -> _T:
    """Call huggingface_hub in a thread with checked answers; return what it returns.

    Without a second thread, a server that sends a byte now and then could block a client forever.

    Raises:
        BadAnswerError: an answer that no hub gives.
        TimeoutError: no answer before the deadline.
    """
    from huggingface_hub import close_session

    _install()
    results: queue.SimpleQueue[tuple[Any, BaseException | None]] = queue.SimpleQueue()

    def work() -> None:
        _limits.set(limits)
        try:
            results.put((call(), None))
        except BaseException as error:
            results.put((None, error))

    threading.Thread(target=work, daemon=True, name="refdiff-hub").start()
    try:
        while (left := limits.left()) > 0:
            try:
                value, error = results.get(timeout=min(left, 1.0))
            except queue.Empty:
                continue  # the deadlines move
            if error is not None:
                raise error
            result: _T = value
            return result
        close_session()  # the next byte of an answer ends the thread
        raise TimeoutError("the hub takes too long")
    finally:
        limits.deadline = 0.0  # ends an abandoned thread, after Ctrl-C too


def _install() -> None:
    """Add the checks to the HTTP client of huggingface_hub; outside of `call_bounded` they have no effect."""
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
            "request": [*hooks["request"], _check_request],
            "response": [*hooks["response"], _check_response],
        }
        return client

    make_checked_client.is_checked = True  # type: ignore[attr-defined]
    set_client_factory(make_checked_client)


def _check_request(request: Any) -> None:
    if (limits := _limits.get()) is not None:
        _check_time(limits)
        limits.step = time.monotonic() + STALLED
        request.headers["Accept-Encoding"] = "identity"


def _check_response(response: Any) -> None:
    limits, headers = _limits.get(), response.headers
    if limits is None:
        return
    _check_time(limits)
    limits.step = math.inf
    if "X-HF-Warning" in headers:  # huggingface_hub logs it
        headers["X-HF-Warning"] = ascii(headers["X-HF-Warning"])[1:-1][:500]
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
            _check_file(limits, headers, is_redirect=response.status_code >= 300)
    for name in ("Retry-After", "RateLimit"):  # a pause of days; huggingface_hub's own pauses are seconds
        headers.pop(name, None)
    encoding = headers.get("Content-Encoding", "identity").lower()
    if encoding != "identity":
        raise BadAnswerError(f"the answer is encoded as {ascii(encoding)[:40]}")
    _bound_body(response, limits, limits.max_bytes if response.status_code in (200, 206) else MAX_ERROR)


def _check_file(limits: Limits, headers: Any, *, is_redirect: bool) -> None:
    """Check a hub's description of a file, from which huggingface_hub makes paths in its cache."""
    from huggingface_hub import constants

    etag = headers.get("X-Linked-Etag") or headers.get("ETag") or ""
    if not _ETAG.fullmatch(etag):
        raise BadAnswerError(f"the ETag {ascii(etag)[:80]} is not a hash")
    size = headers.get("X-Linked-Size") or (None if is_redirect else headers.get("Content-Length"))
    if size is not None:
        if not re.fullmatch(r"\d{1,18}", size) or int(size) > limits.max_bytes:
            raise BadAnswerError(f"the file has {ascii(size)[1:-1][:40]} bytes, expected at most {limits.max_bytes:,}")
        limits.max_bytes = int(size)
        limits.deadline += int(size) / BYTES_PER_SECOND
    if urlsplit(constants.ENDPOINT).hostname != "huggingface.co":
        # Xet's own client, unchecked here, asks any server that the hub names. Every hub also sends files by HTTP.
        headers.pop("X-Xet-Hash", None)


def _bound_body(response: Any, limits: Limits, max_bytes: int) -> None:
    """Raise an error when the body exceeds the limits."""
    inner = response.stream

    class Stream(next(kind for kind in type(inner).__mro__ if kind.__name__ == "SyncByteStream")):  # type: ignore[misc]
        def __iter__(self) -> Iterator[bytes]:
            count = counted = 0
            limits.step = time.monotonic() + STALLED
            for chunk in inner:
                _check_time(limits)
                count += len(chunk)
                if count > max_bytes:
                    raise BadAnswerError(f"the answer is longer than {max_bytes:,} bytes")
                if count - counted >= PROGRESS:
                    counted, limits.step = count, time.monotonic() + STALLED
                yield chunk
            limits.step = math.inf

        def close(self) -> None:
            inner.close()

    response.stream = Stream()


def _check_time(limits: Limits) -> None:
    if limits.left() < 0:
        raise TimeoutError("the hub takes too long")


def _max_bytes(name: str) -> int:
    if name.endswith(".safetensors"):
        return 2**63
    is_vocabulary = name in ("tokenizer.json", "vocab.json", "added_tokens.json")
    return MAX_JSON if name.endswith(".json") and not is_vocabulary else MAX_TOKENIZER
