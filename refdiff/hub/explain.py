"""Explain errors of the hub in one sentence, with the fix."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from refdiff.errors import CheckpointError, MissingFileError
from refdiff.hub.guard import BadAnswerError

_NOT_WRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOTDIR)
_LOG_IN = "log in with `hf auth login`, or set HF_TOKEN"


@contextmanager
def explain_errors(what: str) -> Iterator[None]:
    """Turn any error of huggingface_hub, the network or the disk into a `CheckpointError` about `what`."""
    try:
        yield
    except CheckpointError:
        raise
    except Exception as error:
        from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError, RepositoryNotFoundError

        is_missing = isinstance(error, EntryNotFoundError | LocalEntryNotFoundError | RepositoryNotFoundError)
        kind = MissingFileError if is_missing else CheckpointError
        raise kind(f"{what}: {explain(error)}") from None


def is_unreachable(error: BaseException) -> bool:
    """Return whether the hub did not answer, or cannot serve now, so that a cached copy may be used."""
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    if isinstance(error, HfHubHTTPError):
        return _status(error) == 429 or _status(error) >= 500
    return isinstance(error, OfflineModeIsEnabled | ConnectionError | TimeoutError) or _is_network(error)


def explain(error: BaseException) -> str:
    """Return what `error` means for the user, and the fix, in one line."""
    from huggingface_hub import constants, errors

    if isinstance(error, errors.LocalEntryNotFoundError) and error.__cause__ is not None:
        # huggingface_hub looked in its cache after the hub failed; the cause is why the hub failed.
        return explain(error.__cause__)
    if isinstance(error, errors.OfflineModeIsEnabled | errors.LocalEntryNotFoundError):
        return (
            "no such folder here, not in the cache, and downloading is switched off; "
            "run once without local_files_only and HF_HUB_OFFLINE"
        )
    if isinstance(error, errors.GatedRepoError):
        return f"the repo is gated; accept its conditions on its page at {constants.ENDPOINT}, then {_LOG_IN}"
    if isinstance(error, errors.RepositoryNotFoundError):
        return (
            f"there is no such repo at {constants.ENDPOINT}, and no such folder here; check the spelling, "
            f"or if the repo is private, {_LOG_IN}"
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return "the repo has no such revision; check the name of the branch or tag, or the commit hash"
    if isinstance(error, errors.EntryNotFoundError):
        return "the repo has no such file"
    if isinstance(error, errors.HfHubHTTPError):
        return _explain_status(_status(error), constants.ENDPOINT)
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "the disk is full; free some space, or choose another disk with cache_dir or HF_HOME"
    if isinstance(error, OSError) and error.errno in _NOT_WRITABLE:
        place = error.filename or constants.HF_HUB_CACHE
        return f"{place} cannot be written; choose another folder with cache_dir or HF_HOME"
    if isinstance(error, BadAnswerError):
        return f"{constants.ENDPOINT} does not answer as a hub does: {error}; check HF_ENDPOINT and the proxy"
    if _is_network(error) or isinstance(error, ConnectionError | TimeoutError) or "Consistency check" in str(error):
        endpoint = constants.ENDPOINT or "an empty HF_ENDPOINT"
        return (
            f"the connection to {endpoint} failed ({_first_line(error)}); check the network, the proxy and "
            "HF_ENDPOINT, then run again; complete files are kept"
        )
    return _first_line(error)


def _explain_status(status: int, endpoint: str) -> str:
    if status in (401, 403):
        return f"{endpoint} refused access (HTTP {status}); your token is not valid for this repo: {_LOG_IN}"
    if status == 429:
        return f"{endpoint} limits the rate of requests (HTTP 429); wait some minutes, or {_LOG_IN}"
    if status >= 500:
        return f"{endpoint} has trouble (HTTP {status}); try again later"
    return f"{endpoint} answered with HTTP {status}"


def _status(error: BaseException) -> int:
    return int(getattr(getattr(error, "response", None), "status_code", 0))


def _is_network(error: BaseException) -> bool:
    # Compare package names: huggingface_hub has changed its HTTP library twice.
    packages = ("httpx", "httpcore", "requests", "urllib3")
    return any(kind.__module__.startswith(packages) for kind in type(error).__mro__)


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__
