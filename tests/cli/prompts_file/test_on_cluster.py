"""What a worker does with a model, without a worker; tests/cluster has real ones."""

from __future__ import annotations

import asyncio
import importlib
import pickle
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from refdiff.cli.prompts_file.batches import Task
from refdiff.cli.prompts_file.reading import Prompt

from .conftest import arguments

BATCH = [Task(Prompt(0, "ab", where="in line 1"), 1, ""), Task(Prompt(1, "c", where="in line 2"), 2, "")]
NAME = "refdiff.cli.prompts_file.on_cluster"


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The module, over what it takes from distributed: a base class, and who runs a task."""
    stand_in = ModuleType("distributed")
    stand_in.WorkerPlugin = object  # type: ignore[attr-defined]
    stand_in.get_worker = lambda: WORKER  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "distributed", stand_in)
    monkeypatch.delitem(sys.modules, NAME, raising=False)
    yield importlib.import_module(NAME)
    sys.modules.pop(NAME, None)


WORKER: Any = SimpleNamespace(address="tcp://there:1", state=SimpleNamespace(nthreads=3), plugins={})


@pytest.mark.parametrize(("flags", "threads"), [([], 3), (["--threads", "1"], 1)])
def test_a_worker_loads_the_model_once_with_its_own_threads(
    flags: list[str], threads: int, module: Any, tiny_checkpoint: Path
) -> None:
    plugin = pickle.loads(pickle.dumps(module.ModelOnWorker(arguments(tiny_checkpoint, "-n", "3", *flags))))
    asyncio.run(plugin.setup(WORKER))
    model = plugin._answering._model
    assert model._init_options["threads"] == threads
    WORKER.plugins["a name"] = plugin
    results = module.answer(("a name", BATCH))
    assert [result["generated_tokens"] for result in results] == [3, 3]
    assert plugin._answering._model is model
    plugin.teardown(WORKER)
    with pytest.raises(RuntimeError, match="has released its model"):
        module.answer(("a name", BATCH))


def test_prompts_of_dead_workers_have_failed(module: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    died = module.cluster.WorkersDiedError("4 workers died")
    monkeypatch.setattr(module.cluster, "map_in_order", lambda client, function, items: ((i, died) for i in items))
    client = SimpleNamespace(register_plugin=lambda plugin, name: None, unregister_worker_plugin=lambda name: 1 / 0)
    with module.answering(client, arguments(Path("a/model"))) as answers:
        assert list(answers([BATCH])) == [(BATCH, ["in line 1: 4 workers died", "in line 2: 4 workers died"])]
