"""All rows: the checkpoint that they need, the processes, and the report."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from refdiff.bench import machine, sizes
from refdiff.bench.children import ChildError
from refdiff.bench.measure import Measured, Measurer, Options
from refdiff.bench.rows import Row
from refdiff.bench.side import UnavailableError
from refdiff.bench.work import Work
from refdiff.errors import CheckpointError
from refdiff.model.config import DiffLlamaConfig
from refdiff.model.heads import DiffLlamaForCausalLM
from refdiff.model.weights.names import count_parameters, parameter_shapes

_BY_THEMSELVES = ("cold", "load", "memory")
"""Rows whose processes end with them; they come before those whose processes stay and hold a model each."""


@contextmanager
def checkpoint(like: str | None, folder: str | None, dtype: str | None = None) -> Iterator[str | None]:
    """Give a folder with a checkpoint: the one named, or one like `like`, there or in a folder that is removed.

    `dtype` is what a new one is stored in; None is what the model that it is like is stored in.
    """
    if like is None:
        yield folder
    elif folder is not None:
        sizes.write_like(like, Path(folder), dtype)
        yield folder
    else:
        with tempfile.TemporaryDirectory(prefix="refdiff-bench-") as made:
            sizes.write_like(like, Path(made), dtype)
            yield made


def run(
    rows: list[Row], options: Options, turn: Callable[[Row, str], None] = lambda row, side: None
) -> Generator[Measured, None, None]:
    """Measure rows one after the other, those first whose processes end with them; `turn` hears whose turn it is.

    A row that fails says why in its `error`, and the next one is measured all the same.

    Raises:
        UnavailableError: a side's packages are not installed.
    """
    measurer = Measurer(options, turn)
    try:
        measurer.check()
        for row in sorted(rows, key=lambda row: row.kind not in _BY_THEMSELVES):
            yield from _one(measurer, row)
    finally:
        measurer.close()


def in_order(results: list[Measured], rows: list[Row]) -> list[Measured]:
    """Bring results into the order of the rows."""
    return sorted(results, key=lambda measured: rows.index(measured.row))


def _one(measurer: Measurer, row: Row) -> list[Measured]:
    try:
        if row.kind != "train":
            return measurer.measure(row)
        with tempfile.TemporaryDirectory(prefix="refdiff-bench-") as folder:
            DiffLlamaForCausalLM.from_config(sizes.trained_config(row.model)).save_pretrained(folder)
            return measurer.measure(row, Path(folder))
    except UnavailableError:
        raise
    except (ChildError, CheckpointError, OSError, ValueError) as error:
        measurer.close()  # whichever process failed, none goes on in an unknown state
        return [Measured(row, Work("s"), error=" ".join(str(error).split()))]


def report(results: list[Measured], options: Options, *, model: dict[str, Any] | None) -> dict[str, Any]:
    """Make what `--json` writes: machine, model, how it was measured, and the rows, each with refdiff's commit."""
    commit = machine.commit()
    return {
        "format": "refdiff bench 1",
        "machine": machine.describe(options.settings.threads, options.settings.backend),
        "model": model,
        "settings": {
            "dtype": options.settings.dtype,
            "backend": options.settings.backend,
            "pairs": options.pairs,
            "decoded_tokens": options.steps,
            "looked_up_tokens": options.looked_up,
            "training_batch": [options.batch, options.context],
        },
        "rows": [{**measured.to_dict(), "commit": commit} for measured in results],
    }


def describe_model(like: str | None, folder: str | None, name: str | None) -> dict[str, Any] | None:
    """Say which model was measured: its name without folders, and how many parameters it has."""
    if folder is None:
        return None
    shapes = parameter_shapes(DiffLlamaConfig.from_pretrained(folder), "DiffLlamaForCausalLM")
    called = f"random weights in the dimensions of {like}" if like else Path(name or folder).name
    return {"name": called, "parameters": count_parameters(shapes.values())}
