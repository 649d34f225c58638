"""messages → the one text a chat model was trained to read, by the checkpoint's own Jinja template."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import numpy as np

from refdiff.errors import CheckpointError
from refdiff.generation.chat_template.budget import OverBudgetError
from refdiff.generation.chat_template.files import MAX_BYTES
from refdiff.generation.chat_template.sandbox import RefusedError, TemplateSandbox

# What a rendering may use: about a second of work and 50 MB, and more for long conversations.
_BUDGET = 10_000_000
_BUDGET_PER_CHARACTER = 200

_MAX_TIME_FORMAT = 200

_CONTINUE_HERE = "CONTINUE_FINAL_MESSAGE_TAG "
_REASONING = ("reasoning_content", "thinking", "reasoning")


class ChatTemplate:
    """A compiled chat template; `source` is the file or folder that errors name.

    Raises `CheckpointError` when it is no valid template.
    """

    def __init__(self, text: str, source: str) -> None:
        self.text = text
        self.source = source
        self._lock = threading.Lock()
        if len(text) > MAX_BYTES:
            raise CheckpointError(
                f"{source}: the chat template has {len(text):,} characters, but may have {MAX_BYTES:,}"
            )
        self._environment = TemplateSandbox(_strftime_now)
        try:
            self._template = self._environment.from_string(text)
        except Exception as error:  # Jinja, Python's compiler and number parsing each have errors of their own
            raise CheckpointError(f"{source}: the chat template does not compile: {_first_line(error)}") from None

    def render(self, variables: dict[str, Any]) -> str:
        """Write the text for these variables, which must be plain data (see `plain`).

        Raises `CheckpointError` when the template fails, would not end, or asks for more memory than a chat can need;
        `ValueError` when it refuses the messages by `raise_exception`.
        """
        with self._lock:
            budget = self._environment.budget
            budget.left = 2**62
            budget.weigh(variables)
            size = 2**62 - budget.left
            budget.left = _BUDGET + _BUDGET_PER_CHARACTER * size
            try:
                return self._template.render(variables)
            except RefusedError as error:
                raise ValueError(f"the chat template refuses these messages: {error}") from None
            except OverBudgetError:
                raise CheckpointError(
                    f"{self.source}: the chat template was stopped: it asks for more time or memory than a chat needs"
                ) from None
            except Exception as error:  # whatever a stranger's template runs into is the template's failure
                reason = f"{type(error).__name__}: {_first_line(error)}"
                raise CheckpointError(f"{self.source}: the chat template failed on these messages: {reason}") from None


def render(
    template: ChatTemplate,
    messages: Sequence[Mapping[str, Any]],
    *,
    tools: Sequence[Mapping[str, Any]] | None,
    documents: Sequence[Mapping[str, Any]] | None,
    add_generation_prompt: bool,
    continue_final_message: bool,
    variables: Mapping[str, Any],
) -> str:
    """Render one conversation as transformers does; see `Tokenizer.apply_chat_template`."""
    if continue_final_message and add_generation_prompt:
        raise ValueError(
            "continue_final_message goes on with the last message, add_generation_prompt starts a new one: pass one"
        )
    for name, items in (("tools", tools), ("documents", documents)):
        for item in items or ():
            if not isinstance(item, Mapping):
                raise TypeError(
                    f"{name} must be a list of dicts (a tool by its JSON schema), but has {type(item).__name__}"
                )
    chat = [_with_reasoning(_checked(message)) for message in messages]
    final = _mark_final(chat, template.text) if continue_final_message else ""
    text = template.render(
        {
            "messages": chat,
            "tools": plain(tools),
            "documents": plain(documents),
            "add_generation_prompt": add_generation_prompt,
            **{name: plain(value) for name, value in variables.items()},
        }
    )
    return _cut_at_mark(text, final) if continue_final_message else text


def is_batch(conversation: Any) -> bool:
    """Tell one conversation (a list of messages) from a list of conversations.

    Raises `TypeError` for something else, `ValueError` for an empty list.
    """
    if isinstance(conversation, str | Mapping) or not isinstance(conversation, Sequence):
        raise TypeError(
            'a conversation is a list of messages such as {"role": "user", "content": "Hello"}, '
            f"but got {type(conversation).__name__}"
        )
    if not conversation:
        raise ValueError("the conversation is empty; it needs at least one message")
    return isinstance(conversation[0], list | tuple)


def plain(value: Any) -> Any:
    """Rebuild `value` from plain JSON types, so that a template meets no object with methods of its own."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int):
        return int.__int__(value)
    if isinstance(value, float):
        return float.__float__(value)
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, Mapping):
        return {plain(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return f"<{type(value).__name__}>"


def _checked(message: Any) -> dict[str, Any]:
    if not isinstance(message, Mapping):
        raise TypeError(
            f'a message must be a dict such as {{"role": "user", "content": "Hello"}}, but is {type(message).__name__}'
        )
    # Many templates would print an absent content as the word None.
    return {name: plain(value) for name, value in message.items() if value is not None}


def _with_reasoning(message: dict[str, Any]) -> dict[str, Any]:
    reasoning = next((message[name] for name in _REASONING if name in message), None)
    if reasoning is None:
        return message
    return {"thinking": reasoning, **message, "reasoning_content": reasoning}


def _mark_final(chat: list[dict[str, Any]], template: str) -> str:
    content = chat[-1].get("content") if chat else None
    if content is None or "content" not in template:
        raise ValueError("continue_final_message needs a last message with content, and a template that reads it")
    if isinstance(content, str):
        chat[-1]["content"] = content + _CONTINUE_HERE
        return content
    for block in reversed(content if isinstance(content, list) else []):
        if isinstance(block, dict) and isinstance(block.get("text"), str):
            text: str = block["text"]
            block["text"] = text + _CONTINUE_HERE
            return text
    raise ValueError("continue_final_message found no text in the last message to go on with")


def _cut_at_mark(text: str, final: str) -> str:
    mark = _CONTINUE_HERE.strip()
    if final.strip() not in text or mark not in text:
        raise ValueError("continue_final_message: the template does not print the last message as it is")
    at = text.rindex(mark)
    # A template that trims the content took the mark's trailing space away, and with it the space before the mark.
    return text[:at] if text.startswith(_CONTINUE_HERE, at) else text[:at].rstrip()


def _strftime_now(form: str) -> str:
    # Python tries buffers of up to 256 times the format's length.
    if len(form) > _MAX_TIME_FORMAT:
        raise OverBudgetError
    return datetime.now().strftime(form)


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:300]
