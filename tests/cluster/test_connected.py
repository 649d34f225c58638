"""What is said where there is no cluster."""

from __future__ import annotations

import pytest

from refdiff import cluster


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "TIMEOUT", 3.0)


@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("tcp://127.0.0.1:1", "--dask tcp://127.0.0.1:1: no dask scheduler answered within 3 s; is `dask scheduler`"),
        ("nonsense", "--dask nonsense: .*; give tcp://HOST:PORT"),
        ("tcp://127.0.0.1", "--dask tcp://127.0.0.1: missing port number .*; give tcp://HOST:PORT"),
    ],
)
def test_nothing_answers(address: str, says: str) -> None:
    with pytest.raises(RuntimeError, match=says):
        cluster.connected(address).__enter__()


def test_no_workers(scheduler: str) -> None:
    says = f"--dask {scheduler}: the scheduler has no worker after 3 s; start some with `dask worker {scheduler}`"
    with pytest.raises(RuntimeError, match=says):
        cluster.connected(scheduler).__enter__()
