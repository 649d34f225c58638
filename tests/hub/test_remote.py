"""An outline of a repo: the same headers and λ vectors as the checkpoint itself, for a fraction of the bytes."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save

from refdiff import hub
from refdiff.checkpoint_files import CONFIG_FILES, TOKENIZER_FILES, WEIGHT_FILES
from refdiff.errors import CheckpointError
from refdiff.hub import remote
from refdiff.model import weights
from refdiff.model.weights.folder import open_checkpoint
from tests.hub.lookalike import Lookalike

ALL = (*CONFIG_FILES, *WEIGHT_FILES, *TOKENIZER_FILES)
CONFIG_JSON = b'{"model_type": "diffllama"}'


def layer(index: int, size: int = 300) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(index)
    prefix = f"model.layers.{index}"
    vectors = {f"{prefix}.self_attn.lambda_{name}": rng.normal(size=8) for name in ("q1", "k1", "q2", "k2")}
    matrix = {f"{prefix}.mlp.up_proj.weight": rng.normal(size=(size, size))}
    return {name: array.astype(np.float32) for name, array in {**vectors, **matrix}.items()}


def repo_files(*shards: dict[str, np.ndarray]) -> dict[str, bytes]:
    files = {"config.json": CONFIG_JSON, "tokenizer.json": b"{}", "README.md": b""}
    if len(shards) == 1:
        return {**files, "model.safetensors": save(shards[0])}
    shard_names = [f"model-{index + 1:05}-of-{len(shards):05}.safetensors" for index in range(len(shards))]
    weight_map = {name: file for file, shard in zip(shard_names, shards, strict=True) for name in shard}
    files["model.safetensors.index.json"] = json.dumps({"weight_map": weight_map}).encode()
    return {**files, **{file: save(shard) for file, shard in zip(shard_names, shards, strict=True)}}


def ranges(server: Lookalike) -> int:
    """The bytes of weights that were asked for, all of them by range."""
    total = 0
    for request in server.asked("/cdn/"):
        assert request.range is not None
        begin, end = request.range.removeprefix("bytes=").split("-")
        total += int(end) + 1 - int(begin)
    return total


@pytest.mark.parametrize("sharded", [False, True])
def test_headers_and_vectors_are_there_and_the_rest_is_not(sharded: bool, hub_server: Lookalike) -> None:
    layers = [layer(0), layer(1)]
    hub_server.repo("ai/model", repo_files(*layers) if sharded else repo_files({**layers[0], **layers[1]}))
    with hub.outline("ai/model", files=ALL) as folder:
        found = {name: file.view(name) for file in open_checkpoint(folder) for name in file.tensors}
        assert found.keys() == layers[0].keys() | layers[1].keys()
        for name, array in {**layers[0], **layers[1]}.items():
            assert found[name].shape == array.shape
            if "lambda" in name:
                np.testing.assert_array_equal(found[name], array)
            else:
                assert not found[name][-1].any(), "the end of a large tensor was fetched"
        assert (folder / "config.json").read_bytes() == CONFIG_JSON
        assert (folder / "tokenizer.json").read_bytes() == b"{}"
        outlined = weights.headers(folder)
        sizes = {path.name: path.stat().st_size for path in folder.iterdir()}
        del found
    assert not folder.exists()
    assert ranges(hub_server) < 300_000
    whole = hub.snapshot("ai/model", files=ALL)
    assert outlined == weights.headers(whole)
    assert sizes == {path.name: path.stat().st_size for path in whole.iterdir()}
    for place in ("ai/model", whole):
        with hub.outline(place, files=ALL) as folder:
            assert folder == whole, "what is in the cache is used"
    assert whole.exists()


def test_a_long_header_takes_a_second_request(hub_server: Lookalike) -> None:
    tensors = {f"tensor_{index:06}_{'x' * 50}": np.zeros(1, np.float32) for index in range(1500)}
    hub_server.repo("ai/wide", repo_files({**tensors, **layer(0)}))
    with hub.outline("ai/wide", files=ALL) as folder:
        (header,) = weights.headers(folder).values()
        assert len(header) == 1505
    assert len(hub_server.asked("/cdn/")) == 3


def test_offline(hub_server: Lookalike) -> None:
    hub_server.repo("ai/model", repo_files(layer(0)))
    with (
        pytest.raises(CheckpointError, match=r"ai/model: no such folder here, not in the cache"),
        hub.outline("ai/model", files=ALL, local_files_only=True),
    ):
        pass
    assert hub_server.requests == []
    with pytest.raises(CheckpointError, match="no such folder"), hub.outline(Path("ai/model"), files=ALL):
        pass


@pytest.mark.parametrize(
    ("how", "number", "message"),
    [
        ("cut", 50, "the connection to .* failed"),
        ("status", 503, "http.* has trouble .HTTP 503"),
        ("no ranges", 0, "the server does not send parts of a file"),  # which may have gigabytes
    ],
)
def test_network_errors_name_the_file(how: str, number: int, message: str, hub_server: Lookalike) -> None:
    hub_server.repo("ai/model", repo_files(layer(0)))
    hub_server.fail("/cdn/", how, number)
    with (
        pytest.raises(CheckpointError, match=rf"ai/model: model\.safetensors: {message}"),
        hub.outline("ai/model", files=ALL),
    ):
        pass


@pytest.mark.parametrize("total", ["9", str(10**14), "9" * 5000])
def test_an_impossible_size_is_refused(total: str, hub_server: Lookalike) -> None:
    hub_server.repo("ai/model", repo_files(layer(0)))
    hub_server.total = total
    why = rf"^ai/model: model\.safetensors: .* got the range 'bytes 0-99999/{total[:15]}.*, which no file on a hub has;"
    with pytest.raises(CheckpointError, match=why), hub.outline("ai/model", files=ALL):
        pass


def raw(header: object, data: int = 0) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + bytes(data)


NAME = "model.layers.0.self_attn.lambda_q1"


@pytest.mark.parametrize(
    "content",
    [
        b"abc",
        b"\x80\x02pickle" * 100,
        struct.pack("<Q", 2**63) + b"{}",
        raw(b"[" * 100_000),
        raw(b"[1]"),
        raw(b"\xff\xff"),
        raw({NAME: 5}),
        raw({NAME: {"data_offsets": [0]}}),
        raw({NAME: {"dtype": "F32", "shape": [2], "data_offsets": ["a", "b"]}}),
        raw({NAME: {"dtype": "F32", "shape": [2], "data_offsets": [0, 10**12]}}, 8),
        raw({NAME: {"dtype": "F32", "shape": [2], "data_offsets": [-50, 8]}}, 8),
        raw({NAME: {"dtype": "F32", "shape": [2], "data_offsets": [8, 0]}}, 8),
    ],
    ids=range(12),
)
def test_broken_files_are_reported_by_who_opens_them(content: bytes, hub_server: Lookalike) -> None:
    hub_server.repo("ai/broken", {"config.json": b"{}", "model.safetensors": content})
    with hub.outline("ai/broken", files=ALL) as folder:
        assert (folder / "model.safetensors").read_bytes() == content
        with pytest.raises(CheckpointError, match=r"model\.safetensors"):
            weights.headers(folder)


def test_a_header_that_calls_everything_a_vector_costs_no_more(
    hub_server: Lookalike, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "_MAX_TENSOR_BYTES", 1000)
    hub_server.repo("ai/large", repo_files({NAME: np.ones((300, 300), np.float32)}))
    with hub.outline("ai/large", files=ALL) as folder:
        assert weights.headers(folder)["model.safetensors"][NAME] == ("F32", (300, 300), 360_000)
    assert len(hub_server.asked("/cdn/")) == 1
