"""messages → the one text that a chat model was trained to read, by the checkpoint's own Jinja template."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from refdiff.errors import CheckpointError
from refdiff.generation.chat_template import MAX_CHARACTERS
from refdiff.generation.chat_template.sandbox import RefusedError, Sandbox, StoppedError

_OUTPUT, _OUTPUT_PER_CHARACTER = 300_000, 10  # the most characters that a template may write
_CONTINUE_HERE = "CONTINUE_FINAL_MESSAGE_TAG "
_REASONS = {
    RecursionError: "it calls itself without end, or its values are nested too deeply",
    UnicodeEncodeError: "it writes half a surrogate pair, such as \\ud800, which is not a character",
}  # where Python's own words say nothing about a template
_REASONING = ("reasoning_content", "thinking", "reasoning")


class ChatTemplate:
    """A compiled chat template; errors name `source`, a file or folder.

    Raises `CheckpointError` for a text that is not a valid template.
    """

    def __init__(self, text: str, source: str) -> None:
        self.text, self.source = text, source
        self._lock = threading.Lock()
        if len(text) > MAX_CHARACTERS:
            raise CheckpointError(
                f"{source}: the chat template: got {len(text):,} characters, expected at most {MAX_CHARACTERS:,}"
            )
        try:
            self._sandbox = Sandbox()
            self._template = self._sandbox.from_string(text)
        except Exception as error:  # Jinja, Python's compiler and number parsing each have errors of their own
            raise CheckpointError(f"{source}: the chat template does not compile: {_first_line(error)}") from None

    def render(self, variables: dict[str, Any]) -> str:
        """Return the text for these variables, which must be plain data (see `plain`).

        Raises `CheckpointError` for a template that fails or goes beyond the bounds, `ValueError` where it refuses the
        messages by `raise_exception`.
        """
        with self._lock:
            try:
                characters = self._sandbox.start(variables)
                text = self._template.render(variables)
                if len(text) > _OUTPUT + _OUTPUT_PER_CHARACTER * characters:
                    raise StoppedError
                text.encode()  # half of a surrogate pair, which JSON can spell, is no text
                return text
            except RefusedError as error:
                raise ValueError(
                    f"{self.source}: the chat template refuses these messages: {_first_line(error)}"
                ) from None
            except StoppedError:
                raise CheckpointError(
                    f"{self.source}: the chat template was stopped: it takes more time or memory, or writes more, than "
                    "a chat needs"
                ) from None
            except Exception as error:  # whatever a stranger's template runs into is the template's failure
                reason = _REASONS.get(type(error)) or f"{type(error).__name__}: {_first_line(error)}"
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
            "continue_final_message continues the last message, add_generation_prompt starts a new one: pass one"
        )
    for name, items in (("tools", tools), ("documents", documents)):
        for item in items or ():
            if not isinstance(item, Mapping):
                raise TypeError(
                    f"{name}: got {type(item).__name__}, expected a list of dicts (a tool by its JSON schema)"
                )
    chat = [_message(message) for message in messages]
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
    if not continue_final_message:
        return text
    mark = _CONTINUE_HERE.strip()
    if final.strip() not in text or mark not in text:
        raise ValueError("continue_final_message: the template does not print the last message as it is")
    at = text.rindex(mark)
    # A template that trims the content took the mark's trailing space away, and with it the space before the mark.
    return text[:at] if text.startswith(_CONTINUE_HERE, at) else text[:at].rstrip()


def is_batch(conversation: Any) -> bool:
    """Tell a list of conversations from one conversation, a list of messages.

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
    """Rebuild `value` from plain JSON types: a template meets no object with methods of its own."""
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
    if not isinstance(message, Mapping):
        raise TypeError(
            f'a message: got {type(message).__name__}, expected a dict such as {{"role": "user", "content": "Hello"}}'
        )
    # Many templates would print an absent content as the word None.
    fields = {name: plain(value) for name, value in message.items() if value is not None}
    reasoning = next((fields[name] for name in _REASONING if name in fields), None)
    return fields if reasoning is None else {"thinking": reasoning, **fields, "reasoning_content": reasoning}


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
    raise ValueError("continue_final_message found no text in the last message to continue")


def _first_line(error: BaseException) -> str:
    line = (str(error).splitlines() or [type(error).__name__])[0][:300]
    return line if line.isprintable() else ascii(line)[1:-1]
