"""`GenerationConfig`: options of `generate` as an object, and as generation_config.json."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from refdiff import hub
from refdiff.checkpoint_files import CONFIG_FILES
from refdiff.files import output_folder, read_json, write_json
from refdiff.generation.options import LEFT_OUT, NAMES, OBJECTS, check_value

KNOWN = frozenset((*NAMES, *LEFT_OUT, "bos_token_id", "transformers_version"))


class GenerationConfig(dict[str, Any]):
    """Options of `generate`, with transformers' names: each is an entry and an attribute, and one not set is None.

    `generate(generation_config=…)` takes it, and `model.generation_config` may be one. Entries of other names are kept.

    Raises:
        ValueError: a value out of its range.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.update(**options)

    def __getattr__(self, name: str) -> Any:
        if name not in self and name not in KNOWN:
            raise AttributeError(f"GenerationConfig: got {name!r}, expected an option of generate")
        return self.get(name)

    def __setattr__(self, name: str, value: Any) -> None:
        self[name] = check_value(name, value) if name in NAMES else value

    def update(self, **options: Any) -> dict[str, Any]:  # type: ignore[override]  # transformers' signature
        """Set options; return those that are none, which is nothing here."""
        for name, value in options.items():
            setattr(self, name, value)
        return {}

    def to_dict(self) -> dict[str, Any]:
        """Return what is set."""
        return {name: value for name, value in self.items() if value is not None}

    def to_json_string(self) -> str:
        """Return the content of generation_config.json."""
        return json.dumps(_storable(self), indent=2, sort_keys=True) + "\n"

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], **options: Any) -> GenerationConfig:
        """Return the config of a dict, such as the content of generation_config.json, with other options over it."""
        return cls(**{**values, **options})

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        *,
        revision: str | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        local_files_only: bool = False,
        **options: Any,
    ) -> GenerationConfig:
        """Read the generation_config.json of a checkpoint folder or a hub repo, with other options over it.

        Raises:
            CheckpointError: it is missing or broken.
        """
        folder = hub.snapshot(
            pretrained_model_name_or_path,
            files=CONFIG_FILES,
            revision=revision,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
        )
        return cls.from_dict(read_json(folder / "generation_config.json"), **options)

    def save_pretrained(self, directory: str | os.PathLike[str]) -> Path:
        """Write `generation_config.json` into `directory`, made if needed; return its path."""
        folder = output_folder(directory)
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "generation_config.json", _storable(self))
        return folder / "generation_config.json"


def _storable(config: GenerationConfig) -> dict[str, Any]:
    """Return what JSON can hold: pairs for biases with keys of several tokens, a dict for a watermark, no objects."""
    values = {name: value for name, value in config.to_dict().items() if name not in OBJECTS}
    if isinstance(biases := values.get("sequence_bias"), Mapping):
        values["sequence_bias"] = [[list(key), bias] for key, bias in biases.items()]
    mark: Any = values.get("watermarking_config")
    if mark is not None and not isinstance(mark, Mapping):
        values["watermarking_config"] = mark.to_dict()
    return values
