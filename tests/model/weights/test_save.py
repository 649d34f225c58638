"""Saving: what is written, and that no error, full disk or reader in between meets half a checkpoint."""

from __future__ import annotations

import errno
import itertools
import json
import os
import resource
import stat
import threading
import time
import weakref
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from refdiff import CheckpointError, DiffLlamaConfig
from refdiff.arrays import Deferred
from refdiff.files import lock
from refdiff.model import commit
from refdiff.model.weights import ARCHITECTURES, flatten, headers, initialize, load, nest, parameter_shapes, save
from refdiff.model.weights.save import _parse_size as in_bytes
from tests.model.models import VARIANT_NAMES
from tests.model.weights.files import LAYOUTS, layout_changes, tiny_config

CAUSAL = "DiffLlamaForCausalLM"
SMALL = 400  # bytes; splits the 1,376 bytes of the tiny model over several files


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def constant(value: float, config: DiffLlamaConfig | None = None) -> dict[str, Any]:
    shapes = parameter_shapes(config or tiny_config(), CAUSAL)
    return nest({name: np.full(shape, value, np.float32) for name, shape in shapes.items()})


# ---- what is written


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_comes_back_the_same_from_shards(tmp_path: Path, architecture: str) -> None:
    params = initialize(tiny_config(attention_bias=True), architecture)
    save(tmp_path, tiny_config(attention_bias=True), params, architecture, max_shard_size=SMALL)
    config = DiffLlamaConfig.from_pretrained(tmp_path)
    assert config.architectures == [architecture]
    assert config.dtype == "float32"
    again = flatten(load(tmp_path, config, architecture))
    assert list(again) == list(flatten(params))
    for name, values in flatten(params).items():
        assert_array_equal(again[name], values)


@pytest.mark.parametrize("variant", VARIANT_NAMES)
def test_attention_is_named_as_in_the_module_of_its_variant(tmp_path: Path, variant: str) -> None:
    config = tiny_config(variant=variant, attention_bias=True)
    params = initialize(config, CAUSAL)
    save(tmp_path, config, params, CAUSAL, max_shard_size=SMALL)
    stored = {name for file in headers(tmp_path).values() for name in file}
    expected = {name.replace("o_proj", "out_proj" if variant == "paper" else "o_proj") for name in flatten(params)}
    assert stored == expected
    for name, values in flatten(load(tmp_path, config, CAUSAL)).items():
        assert_array_equal(values, flatten(params)[name])


def test_deferred_arrays_are_made_when_they_are_written_one_by_one(tmp_path: Path) -> None:
    params = initialize(tiny_config(), CAUSAL)
    alive, most = 0, 0

    def read(values: np.ndarray) -> np.ndarray:
        nonlocal alive, most

        def gone() -> None:
            nonlocal alive
            alive -= 1

        copy = values.copy()
        weakref.finalize(copy, gone)
        alive += 1
        most = max(most, alive)
        return copy

    deferred = {name: Deferred(a.shape, a.dtype, partial(read, a)) for name, a in flatten(params).items()}
    save(tmp_path / "later", tiny_config(), nest(deferred), CAUSAL)
    save(tmp_path / "now", tiny_config(), params, CAUSAL)
    for name in names(tmp_path / "now"):
        assert (tmp_path / "later" / name).read_bytes() == (tmp_path / "now" / name).read_bytes()
    assert most <= 2  # the one that is written, and the next one before its name is given to it


def test_shards_by_hand(tmp_path: Path) -> None:
    # Sorted by name: lm_head 168 bytes, embed_tokens 168, then input_layernorm 24 tips it over 340.
    save(
        tmp_path,
        tiny_config(num_hidden_layers=11),
        constant(1, tiny_config(num_hidden_layers=11)),
        CAUSAL,
        max_shard_size=340,
    )
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    placed = index["weight_map"]
    assert index["metadata"] == {"total_parameters": 90 + 11 * 254, "total_size": 4 * (90 + 11 * 254)}
    shards = sorted(set(placed.values()))
    assert names(tmp_path) == sorted(["config.json", "model.safetensors.index.json", *shards])
    assert {name for name, shard in placed.items() if shard == shards[0]} == {
        "lm_head.weight",
        "model.embed_tokens.weight",
    }
    order = [placed[f"model.layers.{i}.input_layernorm.weight"] for i in range(11)]
    assert order == sorted(order)  # layer 10 after layer 9, not after layer 1
    assert all((tmp_path / shard).stat().st_size < 8 + 2000 + 340 for shard in shards)


@pytest.mark.parametrize(
    ("size", "count"),
    [
        ("1KB", 10**3), ("2MB", 2 * 10**6), ("5GB", 5 * 10**9), ("3 tb", 3 * 10**12), (".5KB", 500), ("1.KB", 1000),
        (7, 7), (1, 1),
    ],
)  # fmt: skip
def test_units_are_powers_of_a_thousand(size: int | str, count: int) -> None:
    assert in_bytes(size) == count


@pytest.mark.parametrize("size", ["", "5", "GB", "5 XB", "-1GB", "0GB", "1e3KB", 0, -1, 1.5, True, None])
def test_shard_sizes_that_are_none(tmp_path: Path, size: Any) -> None:
    with pytest.raises(ValueError, match=r"max_shard_size: got .*'5GB' or '200MB'"):
        save(tmp_path / "new", tiny_config(), constant(1), CAUSAL, max_shard_size=size)
    assert not (tmp_path / "new").exists()


def test_parameters_that_do_not_fit(tmp_path: Path) -> None:
    flat = flatten(constant(1))
    del flat["lm_head.weight"]
    flat["model.norm.weight"] = np.zeros(7, np.float32)
    flat["model.more.weight"] = np.zeros(7, np.float32)
    with pytest.raises(ValueError, match="not the parameters of a DiffLlamaForCausalLM") as caught:
        save(tmp_path / "new", tiny_config(), nest(flat), CAUSAL)
    assert str(caught.value).splitlines()[1:] == [
        "  lm_head.weight is missing",
        "  model.more.weight is no parameter of it",
        "  model.norm.weight has shape (7,), expected (6,)",
    ]
    assert not (tmp_path / "new").exists()


def test_tied_model_with_a_matrix_of_its_own_keeps_it(tmp_path: Path) -> None:
    config = tiny_config(tie_word_embeddings=True)
    flat = flatten(constant(1, config))
    assert "lm_head.weight" not in flat
    save(tmp_path / "tied", config, nest(flat), CAUSAL)
    assert "lm_head.weight" not in flatten(load(tmp_path / "tied", config, CAUSAL))
    save(tmp_path / "both", config, nest({**flat, "lm_head.weight": np.full((7, 6), 3, np.float32)}), CAUSAL)
    with pytest.warns(UserWarning, match="with values of its own"):
        assert_array_equal(flatten(load(tmp_path / "both", config, CAUSAL))["lm_head.weight"], 3)


@pytest.mark.parametrize("size", ["5GB", SMALL])
def test_saving_onto_the_memory_mapped_files_of_the_model(tmp_path: Path, size: int | str) -> None:
    params = initialize(tiny_config(), CAUSAL)
    save(tmp_path, tiny_config(), params, CAUSAL, max_shard_size=size)
    mapped = load(tmp_path, tiny_config(), CAUSAL)
    for dtype in ("float32", "bfloat16"):
        save(tmp_path, tiny_config(), mapped, CAUSAL, dtype=dtype, max_shard_size=size)
    for name, values in flatten(params).items():
        assert_array_equal(flatten(mapped)[name], values)
    reloaded = flatten(load(tmp_path, DiffLlamaConfig.from_pretrained(tmp_path), CAUSAL))
    assert_array_equal(reloaded["model.norm.weight"], flatten(params)["model.norm.weight"])


def test_links_are_replaced_and_not_written_through(tmp_path: Path) -> None:
    save(tmp_path / "blobs", tiny_config(), constant(1), CAUSAL)
    snapshot = tmp_path / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    for name in names(tmp_path / "blobs"):
        (snapshot / name).symlink_to(Path("../../blobs") / name)
    before = (tmp_path / "blobs" / "model.safetensors").read_bytes()
    save(snapshot, tiny_config(), constant(2), CAUSAL)
    assert (tmp_path / "blobs" / "model.safetensors").read_bytes() == before
    assert not (snapshot / "model.safetensors").is_symlink()


def test_other_peoples_files_stay(tmp_path: Path) -> None:
    for name in ("tokenizer.json", "model-card.safetensors", "model-1-of-2.safetensors", "adapter.safetensors"):
        (tmp_path / name).write_text("mine")
    save(tmp_path, tiny_config(), constant(1), CAUSAL, max_shard_size=SMALL)
    save(tmp_path, tiny_config(), constant(1), CAUSAL)
    assert names(tmp_path) == [
        "adapter.safetensors", "config.json", "model-1-of-2.safetensors", "model-card.safetensors", "model.safetensors",
        "tokenizer.json",
    ]  # fmt: skip


# ---- every way to be interrupted

OLD, NEW = 1.0, 2.0
CHANGES = layout_changes(
    ("none", "single", "other config"),
    ("single", "single", "same config"),
    ("single", "two shards", "other config"),
    ("two shards", "four shards", "same config"),
    ("four shards", "single", "same config"),
)


class Interruption:
    """Counts what a save asks of the file system; the `limit`-th time fails."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
        self.error = error
        self.count, self.limit = 0, 10**9
        for name in ("replace", "unlink", "fsync", "mkdir", "rmdir"):
            monkeypatch.setattr(os, name, self._counted(name, getattr(os, name)))

    def _counted(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any, **options: Any) -> Any:
            self.count += 1
            if self.count == self.limit:
                raise self.error
            if name == "fsync":  # takes long, and a test has no power to lose
                return None
            return function(*arguments, **options)

        return counted

    def start(self, limit: int) -> None:
        self.count, self.limit = 0, limit


def configs(change: str) -> tuple[DiffLlamaConfig, DiffLlamaConfig]:
    return tiny_config(), tiny_config(rms_norm_eps=0.25 if change == "other config" else 1e-5)


def prepare(folder: Path, before: str) -> None:
    if before != "none":
        save(folder, tiny_config(), constant(OLD), CAUSAL, max_shard_size=LAYOUTS[before])


def state(folder: Path) -> tuple[float, float] | None:
    """What a reader finds: (rms_norm_eps, the value of all weights); None if it is told that there is nothing."""
    try:
        config = DiffLlamaConfig.from_pretrained(folder)
        values = {float(v) for array in flatten(load(folder, config, CAUSAL)).values() for v in np.unique(array)}
    except CheckpointError:
        return None
    (value,) = values  # more than one: a mixture
    return config.rms_norm_eps, value


@pytest.mark.parametrize(("before", "after", "change"), CHANGES)
def test_each_rename_that_matters_is_durable_before_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: str, after: str, change: str
) -> None:
    """The commit; then what is new but the last file, by which the others are found; then that one."""
    new, events, replace = configs(change)[1], [], os.replace
    prepare(tmp_path, before)

    def moved(source: Any, target: Any, **options: Any) -> None:
        replace(source, target, **options)
        if Path(target).parent == tmp_path:
            events.append(Path(target).name)

    monkeypatch.setattr(os, "replace", moved)
    monkeypatch.setattr(os, "fsync", lambda file: stat.S_ISDIR(os.fstat(file).st_mode) and events.append("sync"))
    save(tmp_path, new, constant(NEW), CAUSAL, max_shard_size=LAYOUTS[after])
    last = "model.safetensors" if after == "single" else "model.safetensors.index.json"
    if before != "none" and (after, change) == ("single", "same config"):  # one rename changes everything
        assert events == [last, "sync"]
    else:
        assert events[:4] == ["sync", ".refdiff-save", "sync", "sync"]
        assert events[-3:] == ["sync", last, "sync"]


@pytest.mark.parametrize(("before", "after", "change"), CHANGES)
def test_error_at_any_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: str, after: str, change: str
) -> None:
    _, new = configs(change)
    fault = Interruption(monkeypatch, OSError(errno.EIO, "Input/output error"))
    outcomes = []
    for step in range(1, 200):
        folder = tmp_path / str(step)
        fault.start(10**9)
        prepare(folder, before)
        kept = contents(folder)
        fault.start(step)
        message = error_of(partial(save, folder, new, constant(NEW), CAUSAL, max_shard_size=LAYOUTS[after]))
        reached = fault.count >= step
        fault.start(10**9)
        outcomes.append(message)
        if message is None:
            assert state(folder) == (new.rms_norm_eps, NEW)
        else:
            assert "cannot save the model (1,376 bytes): Input/output error; " in message
            assert str(folder) in message
            if "; what was there before is unharmed" in message:
                assert contents(folder) == kept
            else:
                assert "; the new checkpoint is complete in .refdiff-save, and the next load or save" in message
                assert state(folder) == (new.rms_norm_eps, NEW)
                assert not [name for name in names(folder) if name.startswith(".")]
        if not reached:
            break
    assert outcomes[-1] is None
    assert not reached
    assert len([message for message in outcomes if message]) > 3


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()} if folder.exists() else {}


def error_of(function: Callable[[], None]) -> str | None:
    try:
        function()
    except OSError as error:
        return str(error)
    return None


@pytest.mark.parametrize("size", ["5GB", SMALL])
def test_disk_that_takes_no_more(tmp_path: Path, size: int | str) -> None:
    """A real refusal by the operating system, in the middle of a file."""
    config = tiny_config(vocab_size=5000)
    save(tmp_path, config, constant(OLD, config), CAUSAL, max_shard_size=size)
    kept = contents(tmp_path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(OSError, match=r"cannot save the model \(241,.* unharmed") as caught:
            save(tmp_path, config, constant(NEW, config), CAUSAL, max_shard_size=size)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert caught.value.errno == errno.EFBIG
    assert contents(tmp_path) == kept


def test_a_save_waits_for_another(tmp_path: Path) -> None:
    prepare(tmp_path, "single")
    other = threading.Thread(target=save, args=(tmp_path, tiny_config(), constant(NEW), CAUSAL))
    descriptor = os.open(tmp_path, os.O_RDONLY)
    lock(descriptor, wait=True)
    other.start()
    other.join(0.3)
    assert other.is_alive()
    assert state(tmp_path) == (1e-5, OLD)
    os.close(descriptor)
    other.join(60)
    assert state(tmp_path) == (1e-5, NEW)


@pytest.mark.parametrize("size", ["5GB", 600])
def test_reader_beside_a_writer_never_sees_a_mixture(tmp_path: Path, size: int | str) -> None:
    save(tmp_path, tiny_config(), constant(OLD), CAUSAL, max_shard_size=size)
    seen = Counter[float | None]()

    def write() -> None:
        end = time.monotonic() + 60  # on a busy machine the reader may come to read between two saves only late
        for number, value in enumerate(itertools.cycle([NEW, OLD])):
            if time.monotonic() > end or (number >= 60 and {OLD, NEW} <= set(seen)):
                break
            save(tmp_path, tiny_config(), constant(value), CAUSAL, max_shard_size=size)

    writer = threading.Thread(target=write)
    writer.start()
    while writer.is_alive():
        try:
            params = flatten(load(tmp_path, tiny_config(), CAUSAL))
        except CheckpointError:
            seen[None] += 1
        else:
            (value,) = {float(v) for array in params.values() for v in np.unique(array)}
            seen[value] += 1
    assert {OLD, NEW} <= set(seen)
    if size == "5GB":
        assert None not in seen


def test_two_saves_never_look_alike_where_the_clock_of_the_file_system_stands_still(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for now in (10**18 + 1, 10**18 + 2):
        monkeypatch.setattr(commit.time, "time_ns", lambda now=now: now)
        save(tmp_path, tiny_config(), constant(NEW), CAUSAL, max_shard_size=600)
        assert (tmp_path / "model.safetensors.index.json").stat().st_mtime_ns == now
