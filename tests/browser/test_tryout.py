"""The page "Try it", driven in Chromium: Python runs there, offline, and says what it says everywhere.

PYODIDE is as in test_pyodide.py, REFERENCE as in test_reference.py. The server forbids
Python every other origin.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest

from tests.test_tryout import EXERCISE, MISTAKES, REFERENCE, code, mended, story

from .chromium import Chromium
from .reading import Quiet, change, expect_accessible, expect_quiet, served, wait
from .test_pyodide import pyodide as pyodide
from .test_reference import reference as reference

CHAPTER = "02_where_words_meet"
"""A notebook, of which the cells up to its first picture are run."""
POLICY = "default-src 'self' 'unsafe-eval' 'wasm-unsafe-eval'; img-src 'self' data:"
AGAIN = "document.querySelector('.cell output button')"
LOCAL = 'export const PYODIDE = new URL("../pyodide/", import.meta.url).href;\n'


class _Alone(Quiet):
    asked: ClassVar[set[str]] = set()
    """Paths, those that Python's worker asks for too."""

    def send_head(self) -> Any:
        self.asked.add(self.path.lstrip("/"))
        return super().send_head()

    def end_headers(self) -> None:
        if self.path.startswith("/try/"):
            self.send_header("Content-Security-Policy", POLICY)
        super().end_headers()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, pyodide: Path, reference: Path) -> Path:
    """The site, with Pyodide beside it in the place of that on the network."""
    site = tmp_path_factory.mktemp("site")
    shutil.copytree(reference / "try", site / "try")
    (site / "favicon.ico").write_bytes(b"")  # browsers ask every server for one
    for path in reference.iterdir():
        if path.name != "try":
            (site / path.name).symlink_to(path)
    (site / "try" / "pyodide.js").write_text(LOCAL)
    (site / "pyodide").symlink_to(pyodide / "pyodide")
    return site


@pytest.fixture(scope="module")
def address(site: Path) -> Iterator[str]:
    with served(site, _Alone) as address:
        yield address


@pytest.fixture(scope="module")
def opened(chromium: Chromium, address: str) -> Chromium:
    """The page, opened once: Python takes seconds to start."""
    chromium.open(f"{address}try/index.html")
    return chromium


@pytest.fixture
def page(opened: Chromium, address: str) -> Iterator[Chromium]:
    """The page with its cells as they were; a test also fails if it complained, or asked another server."""
    opened.run("document.querySelectorAll('.reset').forEach((button) => button.click())")
    yield opened
    opened.away()
    expect_quiet(opened, address, "data:")


def output(browser: Chromium, name: str) -> str:
    return str(
        browser.run(f"document.getElementById('cell-{name}').closest('.cell').querySelector('output').innerText")
    )


def run(browser: Chromium, name: str, seconds: float = 120) -> str:
    """Press a cell's button, and return what it prints."""
    cell = f"document.getElementById('cell-{name}').closest('.cell')"
    browser.run(f"{cell}.querySelector('.run').click()")
    wait(browser, f"!{cell}.querySelector('.run').disabled", seconds)
    return output(browser, name)


def test_the_model_tells_the_same_story(page: Chromium) -> None:
    nothing, told, same = (run(page, name) for name in ("tiny", "story", "same"))
    assert page.run("document.getElementById('python-status').innerText") == "Python is ready."
    assert nothing == ""
    assert told.strip() == story()[1].strip()
    assert float(same.split()[-1]) < 1e-9


def test_output_without_a_newline_is_shown_by_its_own_cell(page: Chromium) -> None:
    change(page, "cell-exercise", "print(1, end='')")
    assert run(page, "exercise") == "1"
    change(page, "cell-exercise", "print(2)")
    assert run(page, "exercise") == "2\n"
    change(page, "cell-exercise", "import sys\nprint('Loss: ', end='')\nsys.stderr.write('said ')\n1 / 0")
    assert run(page, "exercise").startswith("Loss: said Traceback (most recent call last):\n")


def test_the_exercise_checks_itself(page: Chromium) -> None:
    assert "eq1: wrong on " in run(page, "exercise")
    change(page, "cell-exercise", code("exercise").replace(*EXERCISE))
    assert run(page, "exercise").startswith("eq1: correct, on ")


def test_the_puzzles(page: Chromium) -> None:
    for number, mistake in enumerate(MISTAKES, 1):
        said = run(page, f"puzzle_{number}")
        assert said.startswith(f"Puzzle {number}: not solved. On ")
        assert " is off by " in said
        assert mistake not in said.split("Show a hint")[0]
        hint = f"document.getElementById('cell-puzzle_{number}').closest('.cell').querySelector('details')"
        assert not page.run(f"{hint}.open")
        page.run(f"{hint}.querySelector('summary').click()")
        assert f"It looks like {mistake}: " in output(page, f"puzzle_{number}")
        change(page, f"cell-puzzle_{number}", mended(number))
        assert run(page, f"puzzle_{number}").startswith(f"Puzzle {number}: solved ✓")
        assert page.run("document.getElementById('solved').innerText") == f"{number} of 5 puzzles solved"
        assert page.run("document.querySelectorAll('.cell.solved').length") == number


def test_a_traceback_shows_the_lines_of_the_cell_alone(page: Chromium) -> None:
    change(page, "cell-exercise", "def f(x):\n    return 1 / x\n\nf(0)")
    said = run(page, "exercise")
    assert said.splitlines() == [
        "Traceback (most recent call last):",
        '  File "<cell>", line 4, in <module>',
        "    f(0)",
        '  File "<cell>", line 2, in f',
        "    return 1 / x",
        "           ~~^~~",
        "ZeroDivisionError: division by zero",
    ]
    assert page.run("document.getElementById('cell-exercise').closest('.cell').classList.contains('wrong')")


def test_the_editor_indents_colors_and_runs(page: Chromium) -> None:
    change(page, "cell-exercise", "for i in range(2):")
    page.run("(() => {const t = document.getElementById('cell-exercise'); t.focus(); t.setSelectionRange(99, 99)})()")
    page.press("Enter")
    page.call("Input.insertText", text="print(i)  # said")
    assert page.run("document.getElementById('cell-exercise').value") == "for i in range(2):\n    print(i)  # said"
    kinds = "[...document.querySelector('#cell-exercise').previousElementSibling.querySelectorAll('span')]"
    assert page.run(kinds + ".map((s) => [s.className, s.textContent])") == [
        ["keyword", "for"], ["keyword", "in"], ["number", "2"], ["comment", "# said"],
    ]  # fmt: skip
    page.run(
        "document.getElementById('cell-exercise').dispatchEvent("
        "new KeyboardEvent('keydown', {key: 'Enter', shiftKey: true, bubbles: true, cancelable: true}))"
    )
    wait(page, "document.getElementById('cell-exercise').closest('.cell').querySelector('output').innerText !== ''")
    assert output(page, "exercise").split() == ["0", "1"]
    page.run("document.getElementById('cell-exercise').closest('.cell').querySelector('.reset').click()")
    assert page.run("document.getElementById('cell-exercise').value") == code("exercise")


@pytest.mark.parametrize("width", [360, 800, 1400])
def test_no_page_is_wider_than_the_window(page: Chromium, width: int) -> None:
    page.resize(width)
    assert page.run("document.documentElement.scrollWidth") <= width
    lines = "[...document.querySelectorAll('.editor > div')].every((e) => Math.abs(e.children[0].offsetHeight - "
    assert page.run(
        lines + "e.children[1].offsetHeight) < 2 && e.children[1].scrollWidth <= e.children[1].offsetWidth)"
    )


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious(page: Chromium, axe: str, scheme: str) -> None:
    page.resize(1200)
    page.prefer(scheme)
    expect_accessible(page, axe, "serious", "critical")


def test_an_endless_loop_is_ended_by_a_restart(page: Chromium) -> None:
    change(page, "cell-exercise", "while True:\n    pass")
    page.run("document.getElementById('cell-exercise').closest('.cell').querySelector('.run').click()")
    page.point("#restart", click=True)
    wait(page, "!document.querySelector('.run:disabled')")
    assert page.run("document.getElementById('restart').hidden")
    change(page, "cell-exercise", "print(1 + 1)")
    assert run(page, "exercise").strip() == "2"


def test_a_chapter_runs_on_its_own_page(chromium: Chromium, address: str, site: Path) -> None:
    chromium.open(f"{address}notebooks/{CHAPTER}.html", width=1400)
    stored = chromium.run(
        "[...document.querySelectorAll('div.cell')].filter((c) => c.querySelector('.cell_input')).map((c) => "
        "[...c.querySelectorAll('.cell_output .stream pre')].map((p) => p.textContent).join(''))"
    )
    count = 1 + chromium.run(
        "[...document.querySelectorAll('div.cell')].filter((c) => c.querySelector('.cell_input'))"
        ".findIndex((c) => c.querySelector('.cell_output img'))"
    )
    assert count > 1
    chromium.point(".run-chapter button", click=True)
    wait(chromium, "document.querySelectorAll('.runs .run').length > 5")
    runs = f"[...document.querySelectorAll('.cell.runs .run')].slice(0, {count})"
    chromium.run(f"{runs}.forEach((button) => button.click())")
    status = "document.querySelector('.run-chapter [role=status]').innerText"
    assert chromium.run(status) == "Python is loading, about 34 MB, once …"
    wait(chromium, "!document.querySelector('.run:disabled')", 400)
    files = [site / path for path in _Alone.asked if path.startswith("pyodide/") or path.endswith(".zip")]
    assert sum(path.stat().st_size for path in files) == pytest.approx(34e6, rel=0.03)
    assert chromium.run("document.querySelectorAll('.runs.wrong').length") == 0
    found = chromium.run(
        f"[...document.querySelectorAll('.cell.runs output')].slice(0, {count}).map((o) => [...o.childNodes]"
        ".filter((n) => n.nodeType === 3).map((n) => n.data).join(''))"
    )
    pairs = list(zip(found, stored[:count], strict=True))
    assert [(a, b) for a, b in pairs if a.split() != b.split()] == []
    assert any(a for a, _ in pairs)
    assert chromium.run("document.querySelectorAll('.cell.runs output img').length") >= 1
    expect_quiet(chromium, address, "data:")


def test_without_python_the_cell_says_so(chromium: Chromium, tmp_path: Path) -> None:
    subprocess.run([sys.executable, REFERENCE / "tryout.py", tmp_path / "try"], check=True)
    (tmp_path / "try" / "pyodide.js").write_text(LOCAL)  # where nothing is
    with served(tmp_path, _Alone) as address:
        chromium.open(f"{address}try/index.html")
        said = run(chromium, "tiny")
        assert said.startswith(f"Python did not load from {address.removeprefix('http://').rstrip('/')}. ")
        chromium.run(f"{AGAIN}.click()")
        assert chromium.run("document.querySelector('.run').disabled")
        wait(chromium, f"{AGAIN} !== null")
        assert output(chromium, "tiny") == said
        assert "could not be loaded" in chromium.run("document.getElementById('python-status').innerText")
