"""The nested dict of arrays → a folder that transformers loads too, written atomically."""

from __future__ import annotations

import copy
import errno
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from refdiff.browser import require
from refdiff.checkpoint_files import INDEX, SINGLE
from refdiff.files import output_folder, write_json
from refdiff.model.commit import PENDING, is_pending, replacing
from refdiff.model.config import DiffLlamaConfig
from refdiff.model.weights.names import check_parameters, count_parameters, flatten, stored_architecture, stored_name
from refdiff.model.weights.precision import NBYTES, compute_dtype
from refdiff.model.weights.safetensors_file import write_safetensors

_SIZE = re.compile(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*(KB|MB|GB|TB)\s*", re.IGNORECASE)
_UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}


def save(
    directory: str | os.PathLike[str],
    config: DiffLlamaConfig,
    params: Mapping[str, Any],
    architecture: str,
    *,
    dtype: str | None = None,
    max_shard_size: int | str = "5GB",
    generation_config: Mapping[str, Any] | None = None,
) -> None:
    """Write the config and the weights as transformers' `save_pretrained` lays them out.

    Names are transformers', but for the last projection in the variant `paper` (`names.stored_name`). Arrays
    that are `Deferred` are made one at a time, when they are written. A process that is killed leaves the old
    checkpoint or the new one (`refdiff.model.commit`). The same input gives the same bytes, which are those that
    transformers writes of a model it has loaded.

    Args:
        directory: the folder; made if needed.
        config: goes into config.json, with `architecture` and `dtype`.
        params: the nested weight dict.
        architecture: the name of the model's class.
        dtype: the precision in the file; None stores the arrays as they are, float32 or float64.
        max_shard_size: bytes, or a number with KB, MB, GB or TB (powers of 1000): weights that do not fit are split in
            the order of their names, and a tensor larger than that gets a file to itself.
        generation_config: goes into generation_config.json; without it, one that is there stays.

    Raises:
        ValueError: `params` are not those of `architecture` with this `config`, a value is beyond float16's
            range, or `dtype` or `max_shard_size` is not understood.
        OSError: something cannot be written, as on a full disk. The message says which checkpoint counts: the one that
            was there, or the new one, which the next load or save puts in place.
    """
    checked = check_parameters(flatten(params), config, architecture)
    arrays = {stored_name(name, config.variant): array for name, array in checked.items()}
    if dtype is None:
        dtype = "float64" if any("float64" in str(array.dtype) for array in arrays.values()) else "float32"
    compute_dtype(dtype)  # raises for an unknown dtype
    shards = _split(arrays, dtype, _parse_size(max_shard_size))
    directory = output_folder(directory)
    if directory.exists() and not directory.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, "got a file, expected a folder; name another", str(directory))
    try:
        with replacing(directory) as staging:
            _write(staging, _described(config, architecture, dtype), arrays, shards, dtype)
            if generation_config:
                write_json(staging / "generation_config.json", dict(generation_config))
    except OSError as error:
        size = count_parameters(array.shape for array in arrays.values()) * NBYTES[dtype]
        which = "what was there before is unharmed"
        if is_pending(directory):
            which = f"the new checkpoint is complete in {PENDING}, and the next load or save puts it in place"
        raise OSError(
            error.errno, f"cannot save the model ({size:,} bytes): {error.strerror or error}; {which}", str(directory)
        ) from error


def _parse_size(size: int | str) -> int:
    match = _SIZE.fullmatch(size) if isinstance(size, str) else None
    count = int(float(match[1]) * _UNITS[match[2].upper()]) if match else size
    if isinstance(count, bool) or not isinstance(count, int) or count <= 0:
        raise ValueError(
            f"max_shard_size: got {size!r}, expected a number of bytes or a string such as '5GB' or '200MB'"
        )
    return count


def _split(arrays: dict[str, Any], dtype: str, limit: int) -> dict[str, list[str]]:
    """Share the tensors out over files as transformers does, sorted by name: file name → tensor names."""
    in_order = sorted(arrays, key=_layer_key)
    if count_parameters(array.shape for array in arrays.values()) * NBYTES[dtype] <= limit:
        return {SINGLE: in_order}
    require("huggingface_hub", "saving to several files")
    from huggingface_hub import split_state_dict_into_shards_factory

    return split_state_dict_into_shards_factory(
        {name: arrays[name] for name in in_order},
        get_storage_size=lambda array: count_parameters([array.shape]) * NBYTES[dtype],
        filename_pattern="model{suffix}.safetensors",
        max_shard_size=limit,
    ).filename_to_tensors


def _layer_key(name: str) -> list[tuple[int, str]]:
    """Sort names by their parts, and layer 10 after layer 9."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in name.split(".")]


def _described(config: DiffLlamaConfig, architecture: str, dtype: str) -> DiffLlamaConfig:
    described = copy.copy(config)
    described.architectures = [stored_architecture(config, architecture)]
    described.dtype = dtype
    return described


def _write(
    staging: Path, config: DiffLlamaConfig, arrays: dict[str, Any], shards: dict[str, list[str]], dtype: str
) -> None:
    config.save_pretrained(staging)
    for file, names in shards.items():
        write_safetensors(staging / file, {name: arrays[name] for name in names}, dtype)
    if len(shards) > 1:
        total = count_parameters(array.shape for array in arrays.values())
        write_json(
            staging / INDEX,
            {
                "metadata": {"total_parameters": total, "total_size": total * NBYTES[dtype]},
                "weight_map": {name: file for file, names in shards.items() for name in names},
            },
        )
