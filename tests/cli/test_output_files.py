"""Figures as files."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from refdiff.cli.output_files import check_file, write_picture
from refdiff.viz.appearance import new_figure

from .conftest import Cli


def test_written_in_the_format_of_the_ending_without_a_ground(tmp_path: Path) -> None:
    from matplotlib import image

    figure = new_figure(1, 0.5)
    write_picture(figure, tmp_path / "a.PNG")
    pixels = image.imread(tmp_path / "a.PNG", format="png")
    assert pixels.shape == (75, 150, 4)
    assert not pixels[..., 3].any()
    write_picture(figure, tmp_path / "a.svg")
    assert b"<svg" in (tmp_path / "a.svg").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.PNG", "a.svg"]


def test_a_picture_without_matplotlib_is_refused_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_file("-o", tmp_path / "a.png")
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"pip install matplotlib"):
        check_file("-o", tmp_path / "a.png")
    check_file("-o", tmp_path / "a.npz", (".npz",))  # which needs none


WRITING = {
    "generate": (["generate", "-o", "{}", "Once"], "-o"),
    "prompts": (["generate", "--prompts-file", "in.txt", "-o", "{}"], "-o"),
    "attention": (["attention", "Once", "-o", "{}"], "-o"),
    "trace": (["trace", "bundled", "Once", "-o", "{}"], "-o"),
    "bench": (["bench", "--rows", "load", "--json", "{}"], "--json"),
}


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux only")
@pytest.mark.parametrize("command", WRITING)
@pytest.mark.parametrize("place", ["/dev/full", "pipe", "link"])
def test_a_device_or_a_pipe_is_refused_before_the_work(command: str, place: str, here: Path, cli: Cli) -> None:
    (here / "in.txt").write_text("Once\n")
    if place == "pipe":
        os.mkfifo("pipe")
    elif place == "link":
        Path("link").symlink_to("/dev/full")
    words, flag = WRITING[command]
    said = f"refdiff {words[0]}: error: {flag} {place}: got a device or a pipe, expected a file; name another\n"
    assert cli(*(word.format(place) for word in words)) == (2, "", said)


def test_a_full_disk_names_the_file(reciting: Path, environment: dict[str, str], tmp_path: Path) -> None:
    def small() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (8, 8))  # as a full disk, but for the word that the system has for it

    plain = {key: value for key, value in environment.items() if not key.startswith("COV")}  # coverage writes files too
    command = [sys.executable, "-m", "refdiff", "generate", "-m", reciting, "h", "-o", "out.txt"]
    done = subprocess.run(command, env=plain, cwd=tmp_path, capture_output=True, check=False, preexec_fn=small)
    assert done.returncode == 1
    assert done.stderr == b"refdiff generate: error: out.txt: File too large\n"
