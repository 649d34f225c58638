"""Read, write and select a checkpoint's chat templates, and prepare conversations for them; `sandbox` runs them."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from refdiff import limits
from refdiff.errors import CheckpointError
from refdiff.files import read_text, write_atomically
from refdiff.messages import json_type, warn

if TYPE_CHECKING:
    from refdiff.generation.chat_template.sandbox import ChatTemplate


_DEFAULT = "chat_template.jinja"
NAMED_TEMPLATES = "additional_chat_templates/*.jinja"
_CONTINUE_HERE = "CONTINUE_FINAL_MESSAGE_TAG "
_REASONING = ("reasoning_content", "thinking", "reasoning")


def parse(value: Any, source: str) -> str | dict[str, str] | None:
    """Read the field `chat_template`: one template, or a list of `{"name": …, "template": …}`, or nothing."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, list) and all(isinstance(item, dict) for item in value):
        value = {item.get("name"): item.get("template") for item in value}
    if not isinstance(value, dict) or not all(isinstance(text, str) for pair in value.items() for text in pair):
        raise CheckpointError(
            f'{source}: chat_template: got {json_type(value)}, expected a string or a list of objects {{"name": …, '
            '"template": …}} of strings'
        )
    return value


def read_files(folder: Path) -> str | dict[str, str] | None:
    """Read chat_template.jinja and additional_chat_templates/*.jinja, which win over tokenizer_config.json."""
    paths = {path.stem: path for path in sorted(folder.glob(NAMED_TEMPLATES))}
    if os.path.lexists(folder / _DEFAULT):
        paths["default"] = folder / _DEFAULT
    found = {name: read_text(path, max_bytes=limits.MAX_TEMPLATE, folder=folder) for name, path in paths.items()}
    return found["default"] if list(found) == ["default"] else found or None


def write_files(folder: Path, templates: str | dict[str, str] | None) -> list[Path]:
    """Write the templates as `read_files` reads them; remove others that are there; return their paths."""
    named = {"default": templates} if isinstance(templates, str) else templates or {}
    paths = {_path(folder, name): text.encode("utf-8") for name, text in named.items()}
    for path, text in paths.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, text, follow_link=False)
    for path in [folder / _DEFAULT, *folder.glob(NAMED_TEMPLATES)]:
        if path not in paths:
            path.unlink(missing_ok=True)
    return list(paths)


def settings(templates: str | dict[str, str] | None) -> dict[str, Any]:
    """Return the templates as a field of tokenizer_config.json, as `parse` reads it; nothing where there is none."""
    named = (
        [{"name": name, "template": text} for name, text in templates.items()] if isinstance(templates, dict) else []
    )
    return {} if templates is None else {"chat_template": named or templates}


def select(own: str | dict[str, str] | None, wanted: str | None, source: str, *, has_tools: bool) -> str:
    """Return the text of a template: `wanted`, a name or the text itself, or else the checkpoint's `own`."""
    if wanted is not None:
        return own.get(wanted, wanted) if isinstance(own, dict) else wanted
    if isinstance(own, str):
        return own
    if own is None:
        raise ValueError(
            f"{source}: chat_template: got none, expected chat_template.jinja, or the field in tokenizer_config.json; "
            "this may not be a chat model: give it plain text, or pass chat_template="
        )
    name = "tool_use" if has_tools and "tool_use" in own else "default"
    if name not in own:
        raise ValueError(
            f"{source}: chat_template: got several without a default, expected the name of one; pass chat_template= "
            f"{', '.join(map(repr, own))}"
        )
    return own[name]


def render(
    template: ChatTemplate,
    messages: Sequence[Mapping[str, Any]],
    variables: Mapping[str, Any],
    continue_final_message: bool | str,
) -> tuple[str, list[tuple[int, int]]]:
    """Render one conversation as transformers does: → text, spans of `generation` blocks.

    See `Tokenizer.apply_chat_template`.
    """
    if continue_final_message and variables["add_generation_prompt"]:
        raise ValueError(
            "continue_final_message, add_generation_prompt: got both, expected one; the first continues the last "
            "message, the second starts a new one"
        )
    for name in ("tools", "documents"):
        for item in variables[name] or ():
            if not isinstance(item, Mapping):
                raise TypeError(
                    f"{name}: got {type(item).__name__}, expected dicts, such as transformers.utils.get_json_schema's"
                )
    chat = [_message(message) for message in messages]
    field = continue_final_message if isinstance(continue_final_message, str) else "content"
    final = _mark_final(chat, field, template.text) if continue_final_message else ""
    text, spans = template.render({**{name: plain(value) for name, value in variables.items()}, "messages": chat})
    if not continue_final_message:
        return text, spans
    mark = _CONTINUE_HERE.strip()
    if final.strip() not in text or mark not in text:
        raise ValueError(
            "continue_final_message: got a template that changes the last message, expected one that prints it as it is"
        )
    at = text.rindex(mark)
    # A template that trims the content removes the mark's trailing space. Then remove the space before the mark too.
    return (text[:at] if text.startswith(_CONTINUE_HERE, at) else text[:at].rstrip()), []


def assistant_masks(
    offsets: Sequence[Sequence[tuple[int, int]]], spans: Sequence[Sequence[tuple[int, int]]]
) -> list[list[int]]:
    """Return 1 for each token of each chat that overlaps one of the chat's spans, 0 for others; warn of no span."""
    if not any(spans):
        warn("return_assistant_tokens_mask: got no {% generation %} block in the chat, so no token is marked")
    return [
        [int(any(begin < stop and end > start for start, stop in of_chat)) for begin, end in row]
        for row, of_chat in zip(offsets, spans, strict=True)
    ]


def is_batch(conversation: Any) -> bool:
    """Tell a list of conversations from one conversation, a list of messages."""
    if isinstance(conversation, str | Mapping) or not isinstance(conversation, Sequence):
        raise TypeError(
            f"conversation: got {type(conversation).__name__}, expected a list of messages such as "
            '{"role": "user", "content": "Hello"}'
        )
    if not conversation:
        raise ValueError("conversation: got no message, expected one or more")
    return isinstance(conversation[0], list | tuple) or hasattr(conversation[0], "messages")


def plain(value: Any) -> Any:
    """Rebuild `value` from plain JSON types, so that a template gets no object with methods of its own."""
    if value is None or isinstance(value, bool):
        return value
    for kind in (str, int, float):
        if isinstance(value, kind):
            return kind.__str__(value) if kind is str else kind(value)
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, Mapping):
        return {plain(key): plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, list | tuple) else f"<{type(value).__name__}>"


def _message(message: Any) -> dict[str, Any]:
    if callable(dump := getattr(message, "model_dump", None)):  # an object of pydantic, such as a client's message
        message = dump()
    elif not isinstance(message, Mapping):
        message = getattr(message, "__dict__", message)
    if not isinstance(message, Mapping):
        raise TypeError(
            f'a message: got {type(message).__name__}, expected a dict such as {{"role": "user", "content": "Hello"}}'
        )
    # Many templates would print an absent content as the word None.
    fields = {name: plain(value) for name, value in message.items() if value is not None}
    if "role" not in fields:
        raise ValueError(
            f'a message: got the fields {", ".join(map(repr, fields)) or "none"}, expected "role" among them, such as '
            '{"role": "user", "content": "Hello"}'
        )
    reasoning = next((fields[name] for name in _REASONING if name in fields), None)
    return fields if reasoning is None else {"thinking": reasoning, **fields, "reasoning_content": reasoning}


def _mark_final(chat: list[dict[str, Any]], field: str, template: str) -> str:
    content = chat[-1].get(field) if chat else None
    # Reasoning has several names; the template may read any of them.
    fields = [name for name in _REASONING if chat and chat[-1].get(name) == content] if field in _REASONING else [field]
    if content is None or not any(name in template for name in fields):
        raise ValueError(
            f"continue_final_message: got no {field} to continue, expected a last message with {field}, and a template "
            "that reads it"
        )
    if isinstance(content, str):
        chat[-1] |= dict.fromkeys(fields, content + _CONTINUE_HERE)
        return content
    for block in reversed(content if isinstance(content, list) else []):
        if isinstance(block, dict) and isinstance(block.get("text"), str):
            text: str = block["text"]
            block["text"] = text + _CONTINUE_HERE
            return text
    raise ValueError("continue_final_message: got a last message without text, expected text to continue")


def _path(folder: Path, name: str) -> Path:
    if name == "default":
        return folder / _DEFAULT
    if not name.isprintable() or Path(f"{name}.jinja").name != f"{name}.jinja" or set(name) & set("\\:") or not name:
        raise ValueError(f"chat_template: got the name {name!r}, expected a file name; rename it in `chat_template`")
    return folder / NAMED_TEMPLATES.replace("*", name)
