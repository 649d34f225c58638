"""Chat templates: where a checkpoint keeps them, the conversation that a template sees, and a sandbox to run it in."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from refdiff.errors import CheckpointError
from refdiff.files import read_text, write_atomically

MAX_CHARACTERS = 100_000  # templates in use have from 1,000 to 60,000

_DEFAULT = "chat_template.jinja"
NAMED_TEMPLATES = "additional_chat_templates/*.jinja"


def templates_in(value: Any, source: str) -> str | dict[str, str] | None:
    """Read the field `chat_template`: one template, or a list of `{"name": …, "template": …}`, or nothing.

    Raises `CheckpointError` for anything else.
    """
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, list) and all(isinstance(item, dict) for item in value):
        value = {item.get("name"): item.get("template") for item in value}
    if not isinstance(value, dict) or not all(isinstance(text, str) for pair in value.items() for text in pair):
        raise CheckpointError(
            f'{source}: chat_template must be a string or a list of objects {{"name": …, "template": …}} of strings'
        )
    return value


def read_templates(folder: Path) -> str | dict[str, str] | None:
    """Read chat_template.jinja and additional_chat_templates/*.jinja, which win over tokenizer_config.json.

    Raises `CheckpointError` for a file that is too large or not UTF-8.
    """
    paths = {path.stem: path for path in sorted(folder.glob(NAMED_TEMPLATES))}
    if os.path.lexists(folder / _DEFAULT):
        paths["default"] = folder / _DEFAULT
    found = {name: read_text(path, max_bytes=MAX_CHARACTERS, folder=folder) for name, path in paths.items()}
    return found["default"] if list(found) == ["default"] else found or None


def write_templates(folder: Path, templates: str | dict[str, str] | None) -> None:
    """Write the templates as `read_templates` reads them; remove others that are there.

    Raises `ValueError` for a name that is not a file name, before anything is written.
    """
    named = {"default": templates} if isinstance(templates, str) else templates or {}
    paths = {_path(folder, name): text.encode("utf-8") for name, text in named.items()}
    for path, text in paths.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, text)
    for path in [folder / _DEFAULT, *folder.glob(NAMED_TEMPLATES)]:
        if path not in paths:
            path.unlink(missing_ok=True)


def select_template(own: str | dict[str, str] | None, wanted: str | None, has_tools: bool, source: str) -> str:
    """Return the text of a template: `wanted`, a name or the text itself, or else the checkpoint's `own`.

    Raises `ValueError` where there is none, or several and no default.
    """
    if isinstance(own, dict):
        if wanted is None:
            wanted = "tool_use" if has_tools and "tool_use" in own else "default"
            if wanted not in own:
                names = ", ".join(map(repr, own))
                raise ValueError(
                    f"{source}: of several chat templates none is the default; pass chat_template= {names}"
                )
        return own.get(wanted, wanted)
    template = own if wanted is None else wanted
    if template is None:
        raise ValueError(
            f"{source}: there is no chat template (no chat_template.jinja, no chat_template in tokenizer_config.json), "
            "so this may not be a chat model: give it plain text, or pass chat_template="
        )
    return template


def _path(folder: Path, name: str) -> Path:
    if name == "default":
        return folder / _DEFAULT
    if not name.isprintable() or Path(f"{name}.jinja").name != f"{name}.jinja" or set(name) & set("\\:") or not name:
        raise ValueError(f"a chat template cannot be saved as a file named {name!r}; rename it in `chat_template`")
    return folder / NAMED_TEMPLATES.replace("*", name)
