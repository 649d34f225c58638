"""What a page shows, read from its document, and what it should show."""

from __future__ import annotations

import contextlib
import functools
import http.server
import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from refdiff.viz import AttentionMaps

from .chromium import Chromium

PageOf = Callable[..., Path]
TABLE = "[...document.querySelectorAll('#rows tr')].map((row) => [...row.children].map((cell) => cell.textContent))"
TEXT = "document.getElementById('{}').textContent"
BODY = "getComputedStyle(document.body)"


class Quiet(http.server.SimpleHTTPRequestHandler):
    """A server that logs nothing."""

    def log_message(self, *_: Any) -> None:
        pass


@contextlib.contextmanager
def served(folder: Path, handler: type[Quiet] = Quiet) -> Iterator[str]:
    """Serve a folder, and give its address."""
    bound = functools.partial(handler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), bound) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


def wait(browser: Chromium, condition: str, seconds: float = 30) -> None:
    """Wait until an expression of the page is true."""
    deadline = time.monotonic() + seconds
    while not browser.run(condition):
        assert time.monotonic() < deadline, condition
        time.sleep(0.02)


def expect_quiet(browser: Chromium, *allowed: str) -> None:
    """The page has not complained, nor asked for an address that begins with something else."""
    assert browser.complaints() == []
    assert [address for address in browser.requests() if not address.startswith(allowed)] == []


def change(browser: Chromium, name: str, value: object, event: str = "input") -> None:
    """Give a field a value, as a reader does."""
    browser.run(
        f"(() => {{const field = document.getElementById('{name}'); field.value = {json.dumps(value)};"
        f"field.dispatchEvent(new Event('{event}', {{bubbles: true}}))}})()"
    )


def expect_accessible(browser: Chromium, axe: str, *impacts: str, options: str = "{}", passes: int = 15) -> None:
    """axe-core finds nothing, or nothing of these impacts, and more than so many of its rules apply."""
    browser.run(axe + "; 0")
    violations, passed = browser.run(f"axe.run({options}).then((r) => [r.violations, r.passes.length])")
    found = [(v["id"], v["impact"], [node["html"][:120] for node in v["nodes"]][:3]) for v in violations]
    assert [one for one in found if not impacts or one[1] in impacts] == []
    assert passed > passes


def number(text: str) -> float:
    return float(text.replace("−", "-"))


def table(browser: Chromium) -> list[tuple[int, str, list[float]]]:
    """The rows of the table: key, token, values."""
    return [(int(row[0]), row[1], [number(cell) for cell in row[2:]]) for row in browser.run(TABLE)]


def pick(browser: Chromium, **chosen: Any) -> None:
    """Choose layer or pair in their lists, as a reader's change of them does."""
    for name, value in chosen.items():
        change(browser, name, -1 if value is None else value, "change")


def text(browser: Chromium, name: str) -> str:
    return str(browser.run(TEXT.format(name)))


def token(key: int) -> str:
    return f"#tokens [role=option]:nth-child({key + 1})"


def expect(browser: Chromium, maps: AttentionMaps, layer: int | None, pair: int | None, query: int) -> None:
    """The table shows the row of `query` to four digits."""
    rows = table(browser)
    assert [row[:2] for row in rows] == [(key, maps.tokens[key]) for key in range(query + 1)]
    shown = np.array([row[2] for row in rows])
    right = np.column_stack([maps.map(name, layer, pair)[query, : query + 1] for name in maps.names])
    assert np.abs(shown - right).max() <= 0.5e-4 + 1e-5
    assert text(browser, "numbers-title") == f"Numbers for “{maps.tokens[query]}”"
