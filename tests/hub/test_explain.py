"""What each kind of trouble is called, and what help is offered; the network's own answers are in test_download.py."""

from __future__ import annotations

import errno

import pytest
from huggingface_hub import errors

from refdiff.errors import CheckpointError
from refdiff.hub.explain import explain, explained, is_unreachable


class FromTheNetwork(Exception):  # noqa: N818
    """Stands for the errors of the three HTTP libraries that huggingface_hub has used."""


FromTheNetwork.__module__ = "httpx2"


def caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (errors.OfflineModeIsEnabled("off"), "not in the cache, and downloading is switched off"),
        (caused(errors.LocalEntryNotFoundError("no"), TimeoutError("slow")), "failed (TimeoutError: slow); check"),
        (errors.EntryNotFoundError("no"), "the repo has no such file"),
        (FromTheNetwork("reset\nby peer"), "failed (FromTheNetwork: reset); check the network"),
        (ConnectionResetError("reset"), "failed (ConnectionResetError: reset)"),
        (OSError("Consistency check failed: 5 of 6 bytes\nretry"), "failed (OSError: Consistency check failed: 5 of 6"),
        (OSError(errno.ENOSPC, "full"), "the disk is full; free some space"),
        (OSError(errno.EROFS, "read-only", "/cache/x"), "/cache/x cannot be written; choose another folder"),
        (PermissionError(errno.EACCES, "denied"), "cannot be written; choose another folder with cache_dir or HF_HOME"),
        (RuntimeError("x" * 1000), f"RuntimeError: {'x' * 300}"),
        (RuntimeError(), "RuntimeError"),
    ],
    ids=range(11),
)
def test_explanations(error: Exception, message: str) -> None:
    text = explain(error)
    assert message in text
    assert "\n" not in text
    assert len(text) < 500


@pytest.mark.parametrize(
    ("error", "unreachable"),
    [
        (errors.OfflineModeIsEnabled("off"), True),
        (TimeoutError(), True),
        (FromTheNetwork(), True),
        (OSError(errno.ENOSPC, "full"), False),
        (ValueError("odd"), False),
    ],
)
def test_which_trouble_lets_the_cache_stand_in(error: Exception, unreachable: bool) -> None:
    assert is_unreachable(error) is unreachable


def test_any_error_becomes_one_that_says_what_it_is_about() -> None:
    with pytest.raises(CheckpointError, match=r"^ai/model: RuntimeError: odd$") as caught, explained("ai/model"):
        raise RuntimeError("odd")
    assert caught.value.__suppress_context__, "the traceback would show the insides of other libraries"
    with pytest.raises(CheckpointError, match=r"^said already$"), explained("ai/model"):
        raise CheckpointError("said already")
    with pytest.raises(KeyboardInterrupt), explained("ai/model"):
        raise KeyboardInterrupt
