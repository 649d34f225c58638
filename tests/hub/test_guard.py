"""Servers that answer to do harm: refused in bounded time, bytes and memory, and nothing is written elsewhere."""

from __future__ import annotations

import gzip
import time
from pathlib import Path

import pytest

from refdiff import hub
from refdiff.checkpoint_files import CONFIG_FILES, WEIGHT_FILES
from refdiff.errors import CheckpointError
from refdiff.hub import guard
from tests.hub.lookalike import Lookalike, tensors
from tests.hub.test_download import ALL, names


def files_in(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if path.is_file() or path.is_symlink()}


ETAGS = [
    {"ETag": '"../../../../x"', "X-Linked-Etag": '"../../../../x"'},
    {"ETag": '"/x"', "X-Linked-Etag": '"/x"'},
    {"ETag": '""', "X-Linked-Etag": '""'},
    {"ETag": '"' + "a" * 40 + '/../../../../x"', "X-Linked-Etag": '"' + "a" * 65 + '"'},
]
COMMITS = [{"X-Repo-Commit": commit} for commit in ("../../../../x", "main", "a" * 41)]
FILES = ("config.json", "model.safetensors")


@pytest.mark.parametrize(
    ("headers", "file"),
    [
        *((headers, file) for headers in ETAGS + COMMITS for file in FILES),
        *((headers, "missing.json") for headers in COMMITS),  # huggingface_hub writes down which files are not there
    ],
    ids=range(17),
)
def test_hashes_that_are_paths_are_refused_before_anything_is_written(
    headers: dict[str, str], file: str, hub_server: Lookalike, tmp_path: Path
) -> None:
    hub_server.headers = headers
    before = files_in(tmp_path)
    with pytest.raises(guard.BadAnswerError, match=r"(the ETag|the commit) '.*' is not a hash"):
        guard.download("ai/model", file, revision="main", cache_dir=str(tmp_path / "cache"))
    assert files_in(tmp_path) == before
    with pytest.raises(CheckpointError, match=r"^ai/model: .*does not answer as a hub does: the \w+ .* is not a hash"):
        hub.snapshot("ai/model", files=ALL)


@pytest.mark.parametrize("part", ["/api/models", "/cdn/", "/resolve/"])
def test_an_answer_without_end_stops(part: str, hub_server: Lookalike, tmp_path: Path) -> None:
    """At the size that was said of a file, or that a description may have."""
    hub_server.fail(part, "endless", 100_000, times=20)
    with pytest.raises(CheckpointError, match=r"the answer is longer than [\d,]+ bytes"):
        hub.snapshot("ai/model", files=WEIGHT_FILES if part == "/cdn/" else CONFIG_FILES)
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and path.stat().st_size > 1000]


@pytest.mark.parametrize(
    "info",
    [
        b"<html>Password?</html>",
        b"[" * 100_000,
        b'{"id": "ai/model", "sha": "../main"}',
        b'{"id": "ai/model", "sha": 5}',
        *(
            b'{"id": "ai/model", "sha": "' + b"a" * 40 + b'", ' + more + b"}"
            for more in (
                b'"siblings": [{"rfilename": 5}]',
                b'"siblings": 5',
                b'"siblings": [[]]',
                b'"lastModified": "never"',
                b'"downloads": ' + b"9" * 5000,
            )
        ),
        b"\xff\xfe",
    ],
    ids=range(10),
)
def test_a_description_that_cannot_be_read_is_one_error(info: bytes, hub_server: Lookalike) -> None:
    """Such as the page on which a hotel's network wants a password; what is in the cache stands in."""
    hub_server.info = info
    with pytest.raises(
        CheckpointError,
        match=r"^ai/model: no such folder here, and http.* does not answer as a hub does: its description of the repo "
        "cannot be read; check HF_ENDPOINT",
    ):
        hub.snapshot("ai/model")
    hub_server.info = None
    folder = hub.snapshot("ai/model")
    hub_server.info = info
    with pytest.warns(UserWarning, match=r"using the copy in the cache: .* not answer as a hub"):
        assert hub.snapshot("ai/model") == folder


@pytest.mark.parametrize("encoding", ["gzip", "br"])
def test_an_answer_that_would_be_unzipped_is_refused(encoding: str, hub_server: Lookalike) -> None:
    hub_server.info_headers = {"Content-Encoding": encoding}
    hub_server.info = gzip.compress(b" " * 50_000_000)
    with pytest.raises(CheckpointError, match=f"the answer is encoded as '{encoding}'"):
        hub.snapshot("ai/model")


@pytest.mark.parametrize("part", ["/api/models", "/cdn/"])
def test_an_answer_without_progress_is_given_up(
    part: str, hub_server: Lookalike, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guard, "STALLED", 0.5)
    hub_server.fail(part, "drip", 20)
    started = time.monotonic()
    with pytest.raises(CheckpointError, match=r"ai/model: .*the hub takes too long"):
        hub.snapshot("ai/model", files=WEIGHT_FILES)
    assert time.monotonic() - started < 10


def test_sizes_are_checked_before_the_download(hub_server: Lookalike) -> None:
    for size, message in (
        ("9" * 30, "the file has 9{30} bytes"),
        ("-1", "the file has -1 bytes"),
    ):
        hub_server.headers = {"X-Linked-Size": size}
        with pytest.raises(CheckpointError, match=message):
            hub.snapshot("ai/model", files=WEIGHT_FILES)
    assert not hub_server.asked("/cdn/")


def test_a_repo_of_countless_files_is_refused(hub_server: Lookalike) -> None:
    hub_server.repo("ai/many", {"config.json": b"{}", **{f"templates/{i}.jinja": b"" for i in range(1001)}})
    with pytest.raises(CheckpointError, match=r"ai/many: has 1,002 files to download, expected at most 1,000"):
        hub.snapshot("ai/many", files=("config.json", "templates/*.jinja"))
    assert not hub_server.asked("/resolve/", "HEAD")


def test_a_hub_may_send_to_another_page_of_its_own(hub_server: Lookalike) -> None:
    hub_server.moved = True
    folder = hub.snapshot("ai/model", files=ALL)
    assert names(folder) == {"config.json", "generation_config.json", "tokenizer.json", "model.safetensors"}
    assert hub_server.asked("/moved/")


def test_requests_of_others_are_left_alone(hub_server: Lookalike) -> None:
    from huggingface_hub import get_session

    hub.snapshot("ai/model")
    hub_server.headers = {"X-Repo-Commit": "main", "ETag": "x"}
    answer = get_session().get(f"{hub_server.endpoint}/ai/model/resolve/main/config.json")
    assert answer.headers["X-Repo-Commit"] == "main"


def test_xet_is_for_the_hub_itself(hub_server: Lookalike) -> None:
    hub_server.headers = {"X-Xet-Hash": "a" * 64, "X-Xet-Refresh-Route": "/nowhere"}
    assert (hub.snapshot("ai/model", files=WEIGHT_FILES) / "model.safetensors").read_bytes() == tensors(1)


def test_the_hub_cannot_ask_for_a_pause_of_days_or_write_to_the_terminal(
    hub_server: Lookalike, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr("huggingface_hub.utils._http.logger.warning", lambda message, *_: said.append(message))
    pauses: list[float] = []
    monkeypatch.setattr(time, "sleep", pauses.append)
    hub_server.headers = {"Retry-After": "1000000", "RateLimit": '"api";r=0;t=1000000'}
    hub_server.fail("/resolve/", "status", 429, times=4)
    hub_server.info_headers = {"X-HF-Warning": "topic; \x1b[31mold"}
    assert names(hub.snapshot("ai/model")) == {"config.json", "generation_config.json"}
    assert not any("topic" in text for text in said)
    assert pauses
    assert max(pauses) <= 30
