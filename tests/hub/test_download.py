"""Downloads from the look-alike through huggingface_hub's own code: what is fetched, resumed, refused and said.

It has the repo ai/model.
"""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest

import refdiff
from refdiff import hub
from refdiff.checkpoint_files import CONFIG_FILES, TOKENIZER_FILES, WEIGHT_FILES
from refdiff.errors import CheckpointError
from refdiff.model import weights
from refdiff.model.config import DiffLlamaConfig
from tests.hub.lookalike import TOKEN, Lookalike, model_files, tensors

ALL = (*CONFIG_FILES, *WEIGHT_FILES, *TOKENIZER_FILES)


def sharded_files() -> dict[str, bytes]:
    shards = {f"model-0000{index}-of-00002.safetensors": tensors(index) for index in (1, 2)}
    weight_map = {f"t{index}": name for index, name in enumerate(shards, start=1)}
    files = model_files(**shards, **{"model.safetensors.index.json": json.dumps({"weight_map": weight_map}).encode()})
    del files["model.safetensors"]
    return {**files, "model-00009-of-00009.safetensors": tensors(9)}


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def blobs(cache: Path) -> list[Path]:
    return [path for path in cache.rglob("*") if path.parent.name == "blobs"]


# What is fetched


def test_only_the_files_asked_for_are_fetched(hub_server: Lookalike) -> None:
    folder = hub.snapshot("ai/model")
    assert names(folder) == {"config.json", "generation_config.json"}
    assert (folder / "config.json").read_bytes() == b'{"model_type": "diffllama"}'
    assert not hub_server.asked("/cdn/")
    assert names(hub.snapshot("ai/model", files=TOKENIZER_FILES)) >= {"tokenizer.json"}
    assert hub.snapshot("ai/model", files=ALL) == folder
    assert names(folder) == {"config.json", "generation_config.json", "tokenizer.json", "model.safetensors"}
    assert (folder / "model.safetensors").read_bytes() == tensors(1)
    assert weights.headers(folder) == {"model.safetensors": {"t1": ("F32", (5000,), 20000)}}


def test_the_weights_of_another_model_are_not_fetched(hub_server: Lookalike) -> None:
    hub_server.repo("ai/other", {"config.json": b'{"model_type": "gpt2"}', "model.safetensors": tensors(1)})
    with pytest.raises(CheckpointError, match="model_type: got 'gpt2', expected one of"):
        refdiff.DiffLlamaForCausalLM.from_pretrained("ai/other")
    assert not hub_server.asked("model.safetensors")


def test_the_callback_runs_when_the_hub_has_answered(hub_server: Lookalike) -> None:
    requests: list[int] = []
    hub.snapshot("ai/model", answered=lambda: requests.append(len(hub_server.asked("ai/model"))))
    assert requests == [1]
    with pytest.raises(CheckpointError, match="no such repo"):
        hub.snapshot("ai/absent", answered=lambda: requests.append(0))
    assert requests == [1, 0]


def test_a_sharded_model_is_fetched_by_its_index(hub_server: Lookalike) -> None:
    hub_server.repo("ai/sharded", sharded_files())
    folder = hub.snapshot("ai/sharded", files=WEIGHT_FILES)
    assert names(folder) == {
        "model.safetensors.index.json",
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
    }
    assert list(weights.headers(folder)) == ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    hub_server.repo("ai/both", {**sharded_files(), "model.safetensors": tensors(1)})
    assert names(hub.snapshot("ai/both", files=WEIGHT_FILES)) == {"model.safetensors"}


def test_the_second_call_fetches_nothing(hub_server: Lookalike) -> None:
    folder = hub.snapshot("ai/model", files=ALL)
    hub_server.requests.clear()
    assert hub.snapshot("ai/model", files=ALL) == folder
    assert hub_server.asked("/resolve/") == hub_server.asked("/cdn/") == []
    hub_server.requests.clear()
    assert hub.snapshot("ai/model", files=ALL, revision=folder.name) == folder
    assert hub_server.requests == []


def test_revisions(hub_server: Lookalike) -> None:
    repo = hub_server.repo("ai/model", model_files())
    first = repo.branches["main"]
    repo.commit(model_files(**{"config.json": b'{"hidden_size": 64}'}), branch="v2")
    assert hub.snapshot("ai/model").name == first
    assert hub.snapshot("ai/model", revision=first).name == first
    assert hub.snapshot("ai/model", revision="v2").name == repo.branches["v2"]
    assert json.loads((hub.snapshot("ai/model", revision="v2") / "config.json").read_text()) == {"hidden_size": 64}


def test_one_snapshot_even_if_the_repo_changes_meanwhile(
    hub_server: Lookalike, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    repo = hub_server.repo("ai/model", model_files())
    download = huggingface_hub.hf_hub_download

    def slow(repo_id: str, name: str, **options: Any) -> str:
        path: str = download(repo_id, name, **options)
        repo.commit(model_files(**{"tokenizer.json": b'{"new": 1}'}))
        return path

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", slow)
    folder = hub.snapshot("ai/model", files=ALL)
    assert (folder / "tokenizer.json").read_bytes() == b"{}"


# Private repos


@pytest.mark.parametrize("access", ["private", "gated"])
def test_a_token_opens_what_is_closed_and_does_not_leave_the_hub(
    access: str, hub_server: Lookalike, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub_server.repo("ai/secret", model_files(), access=access)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    folder = hub.snapshot("ai/secret", files=ALL)
    assert (folder / "model.safetensors").read_bytes() == tensors(1)
    assert all(request.authorized for request in hub_server.asked("/resolve/"))
    assert not any(request.authorized for request in hub_server.asked("/cdn/"))


# Connections that break


def test_a_subfolder_is_a_checkpoint_of_its_own(hub_server: Lookalike, monkeypatch: pytest.MonkeyPatch) -> None:
    inner = {f"deep/er/{name}": content for name, content in model_files().items()}
    hub_server.repo("ai/nested", {"README.md": b"", "config.json": b"{}", **inner})
    folder = hub.snapshot("ai/nested", files=ALL, subfolder="deep/er")
    assert folder.parts[-2:] == ("deep", "er")
    assert (folder / "config.json").read_bytes() == b'{"model_type": "diffllama"}'
    assert (folder / "model.safetensors").read_bytes() == tensors(1)
    assert hub.snapshot("ai/nested", files=ALL, subfolder="deep/er", local_files_only=True) == folder
    assert hub.snapshot(folder.parents[1], subfolder="deep/er") == folder
    with pytest.raises(OSError, match=r"ai/nested: has no config\.json"):  # transformers' class of error
        hub.snapshot("ai/nested", subfolder="elsewhere")


def test_a_token_and_a_new_download_may_be_asked_for(hub_server: Lookalike) -> None:
    hub_server.repo("ai/closed", model_files(), access="private")
    with pytest.raises(CheckpointError):
        hub.snapshot("ai/closed")
    folder = hub.snapshot("ai/closed", files=ALL, token=TOKEN)
    before = len(hub_server.asked("/cdn/"))
    assert hub.snapshot("ai/closed", files=ALL, token=TOKEN) == folder
    assert len(hub_server.asked("/cdn/")) == before
    hub.snapshot("ai/closed", files=ALL, token=TOKEN, force_download=True)
    assert len(hub_server.asked("/cdn/")) > before


@pytest.mark.parametrize(("how", "number", "times"), [("cut", 0, 20), ("reset", 7000, 1)])
def test_a_download_that_fails_for_good_leaves_nothing_that_loads(
    how: str, number: int, times: int, hub_server: Lookalike, tmp_path: Path
) -> None:
    hub_server.fail("/cdn/", how, number, times)
    with pytest.raises(CheckpointError) as caught:
        hub.snapshot("ai/model", files=ALL)
    message = str(caught.value)
    assert message.startswith("ai/model: model.safetensors: the connection to http://127.0.0.1:")
    assert "run again; complete files are kept" in message
    assert caught.value.__cause__ is None
    folder = hub.snapshot("ai/model", files=CONFIG_FILES)
    assert "model.safetensors" not in names(folder)
    assert all(path.stat().st_size < 1000 for path in blobs(tmp_path / "cache"))
    with pytest.raises(OSError, match=r"has neither model\.safetensors .* run once without") as caught:
        hub.snapshot("ai/model", files=ALL, local_files_only=True)
    assert str(folder) in str(caught.value)
    with pytest.raises(OSError, match=r"has neither model.safetensors nor"):
        weights.headers(folder)

    hub_server.faults.clear()
    hub_server.requests.clear()
    folder = hub.snapshot("ai/model", files=ALL)
    assert (folder / "model.safetensors").read_bytes() == tensors(1)
    assert not hub_server.asked("tokenizer.json"), "complete files were fetched again"


# Offline


def test_offline(hub_server: Lookalike, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    for revision, what in ((None, "ai/model: "), ("v2", "ai/model at revision v2: ")):
        with pytest.raises(CheckpointError, match=rf"^{what}no such folder here, not in .* without local_files_only"):
            hub.snapshot("ai/model", revision=revision, local_files_only=True)
    folder = hub.snapshot("ai/model", files=ALL)
    hub_server.requests.clear()
    for revision in (None, "main", folder.name):
        assert hub.snapshot("ai/model", files=ALL, local_files_only=True, revision=revision) == folder
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert hub.snapshot("ai/model", files=ALL) == folder
    with pytest.raises(CheckpointError, match=r"^ai/other: no such folder here, not in the cache, and downl"):
        hub.snapshot("ai/other")
    assert hub_server.requests == []


def test_a_blob_that_was_deleted_counts_as_missing(hub_server: Lookalike) -> None:
    folder = hub.snapshot("ai/model", files=ALL)
    (folder / "model.safetensors").resolve().unlink()
    with pytest.raises(CheckpointError, match=r"has neither model\.safetensors"):
        hub.snapshot("ai/model", files=ALL, local_files_only=True)
    assert hub.snapshot("ai/model", files=ALL) == folder
    assert (folder / "model.safetensors").read_bytes() == tensors(1)


@pytest.mark.parametrize("status", [500, 503, 429])
def test_when_the_hub_has_trouble_the_cache_is_used(status: int, hub_server: Lookalike) -> None:
    folder = hub.snapshot("ai/model", files=ALL)
    hub_server.fail("/api/models", "status", status)
    with pytest.warns(UserWarning, match=rf"ai/model: using the copy in the cache: http.*HTTP {status}"):
        assert hub.snapshot("ai/model", files=ALL) == folder


def test_when_the_hub_is_gone_the_cache_is_used(hub_server: Lookalike, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    folder = hub.snapshot("ai/model", files=ALL)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.warns(UserWarning, match=r"using the copy in the cache: the connection to http://127.0.0.1:9 failed "):
        assert hub.snapshot("ai/model", files=ALL) == folder
    with pytest.raises(
        CheckpointError,
        match=r"^ai/other: no such folder here, and the connection to http://127.0.0.1:9 failed .*check the",
    ):
        hub.snapshot("ai/other")


# What is refused, and what the message says


@pytest.mark.parametrize(
    ("repo", "revision", "message"),
    [
        ("ai/none", None, "ai/none: there is no such repo at http.* check the spelling, .*HF_TOKEN"),
        ("ai/private", None, "ai/private: .* if the repo is private, log in"),
        ("ai/gated", None, r"ai/gated: config\.json: the repo is gated; accept its conditions"),
        ("ai/model", "v9", "ai/model at revision v9: the repo has no such revision"),
        ("ai/model", "c" * 40, f"ai/model at revision {'c' * 40}: the repo has no such revision"),
    ],
)
def test_missing_private_and_gated_repos_are_refused(
    repo: str, revision: str | None, message: str, hub_server: Lookalike
) -> None:
    for access in ("private", "gated"):
        hub_server.repo(f"ai/{access}", model_files(), access=access)
    with pytest.raises(CheckpointError, match=f"^{message}"):
        hub.snapshot(repo, revision=revision)


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (401, "refused access"),
        (403, "refused access .HTTP 403.; your token"),
        (418, "answered with HTTP 418"),
        (429, "limits the rate"),
        (502, "has trouble .HTTP 502.; try again later"),
    ],
)
def test_other_answers(status: int, message: str, hub_server: Lookalike) -> None:
    hub_server.fail("/resolve/", "status", status, times=20)
    with pytest.raises(CheckpointError, match=rf"^ai/model: config\.json: .*{message}"):
        hub.snapshot("ai/model")


def without(files: dict[str, bytes], *names: str) -> dict[str, bytes]:
    return {name: content for name, content in files.items() if name not in names}


def indexed(index: bytes) -> dict[str, bytes]:
    return {"config.json": b"{}", "model.safetensors.index.json": index}


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "has no config.json, but is empty"),
        (
            without(model_files(), "config.json"),
            "has no config.json, but .*; is it a transformers model.$",
        ),
        (without(model_files(), "model.safetensors"), "only as pickles such as pytorch_model.bin, .*convert them"),
        (
            without(model_files(), "model.safetensors", "pytorch_model.bin"),
            r"neither .*index\.json, but has README",
        ),
        (
            without(sharded_files(), "model-00002-of-00002.safetensors"),
            "names 2 files, but 1 of them are missing",
        ),
        (indexed(b"[" * 100_000), r"index\.json: nested too deeply"),
        (indexed(b"\xff"), r"index\.json: not UTF-8 text"),
        (indexed(b"[1]"), r"index\.json: the top level: got a list"),
        (indexed(b'{"weight_map": [1]}'), r"weight_map: got \[1\], expected tensor → file name"),
        (indexed(b'{"weight_map": {}}'), "weight_map: got {}, expected tensor → file name"),
        (indexed(b'{"weight_map": {"a": "../a.safetensors"}}'), "is not a plain name of a file in this folder"),
        (indexed(b'{"weight_map": {"a": "pytorch_model.bin"}}'), "got .pytorch_model.bin. for .a., expected the name"),
        (indexed(b" " * 10_000_001), "the file has 10000001 bytes, expected at most 10,000,000"),
    ],
    ids=range(13),
)
def test_repos_that_lack_something(files: dict[str, bytes], message: str, hub_server: Lookalike) -> None:
    hub_server.repo("ai/broken", files)
    with pytest.raises(CheckpointError, match=message) as caught:
        hub.snapshot("ai/broken", files=ALL)
    assert str(caught.value).startswith("ai/broken: ")
    assert not hub_server.asked("pytorch_model.bin")


def test_names_that_climb_out_of_the_cache_are_passed_over(hub_server: Lookalike, tmp_path: Path) -> None:
    evil = {"../config.json": b"{}", "a/../../../tokenizer.json": b"{}", "model-/../../x.safetensors": b""}
    hub_server.repo("ai/evil", {**model_files(), **evil})
    folder = hub.snapshot("ai/evil", files=(*ALL, "../*.json", "*/*/*/*/*.json"))
    assert names(folder) == {"config.json", "generation_config.json", "tokenizer.json", "model.safetensors"}


def test_a_full_disk_and_a_cache_that_cannot_be_written(hub_server: Lookalike, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    for number, message in (
        (errno.ENOSPC, "the disk is full; free some space, or choose another disk with cache_dir or HF_HOME"),
        (errno.EACCES, "/some/file cannot be written; choose another folder with cache_dir or HF_HOME"),
        (errno.ENOTDIR, "/some/file cannot be written"),
        (errno.EIO, "OSError: .*Input/output error"),
    ):

        def fail(*_: Any, number: int = number, **__: Any) -> str:
            raise OSError(number, os.strerror(number), "/some/file")

        monkeypatch.setattr(huggingface_hub, "hf_hub_download", fail)
        with pytest.raises(CheckpointError, match=rf"^ai/model: config\.json: {message}"):
            hub.snapshot("ai/model")


# Folders


def test_a_folder_is_returned_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert hub.snapshot(tmp_path) == tmp_path
    assert hub.snapshot(str(tmp_path)) == tmp_path
    (tmp_path / "ai" / "model").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert hub.snapshot("ai/model") == Path("ai/model")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert hub.snapshot("~/ai") == tmp_path / "ai"


@pytest.mark.parametrize(
    "path",
    ["./model", "/no/model", "~/no/model", "~no.such.user/model", "a/b/c", "model/", ".", "C:model", "a\\b", ".."],
)
def test_a_name_that_looks_like_a_path_is_not_looked_for_on_the_hub(
    path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    if path in (".", ".."):
        assert hub.snapshot(path) == Path(path)
        return
    for name in (path, Path("ai/model")):
        with pytest.raises(CheckpointError, match=r"no such folder"):
            hub.snapshot(name)


NO_REPO = "neither a folder nor a repo id"


@pytest.mark.parametrize("name", [None, 5, b"a/b"])
def test_a_name_that_is_not_text_is_refused_with_the_argument(name: Any) -> None:
    with pytest.raises(TypeError, match=r"^path_or_repo: got .*, expected a folder or the id of a hub repo"):
        hub.snapshot(name)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        *((name, NO_REPO) for name in ("", "a b/c", "a/b\n", "a\0b", "日本/語", "a--b/c", "a..b", "x" * 200)),
        ("ai/" + "x" * 300, f"{NO_REPO}|cannot be read: File name too long"),
        ("https://huggingface.co/ai/model", "is a web address; give the repo id in it, such as user/name"),
        ("hf://ai/model", "is a web address"),
        ("model.safetensors", "is a file; give the folder that it is in"),
        ("pipe", "pipe: neither a folder nor a regular file, but a named pipe; name another"),
    ],
)
def test_names_of_neither_a_folder_nor_a_repo_are_refused(
    name: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model.safetensors").touch()
    os.mkfifo(tmp_path / "pipe")
    for read in (hub.snapshot, *([DiffLlamaConfig.from_pretrained] if name == "pipe" else [])):
        with pytest.raises(CheckpointError, match=message):
            read(name)
