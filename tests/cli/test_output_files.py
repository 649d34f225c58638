"""Figures as files."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from refdiff.cli.flags import UsageError
from refdiff.cli.output_files import check_file, write_picture
from refdiff.viz.appearance import new_figure


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


def test_what_could_not_be_written_is_refused_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_file("-o", tmp_path / "a.png")
    with pytest.raises(UsageError, match=r"--plot a\.pdf: got \.pdf, expected a file name that ends in \.png, \.svg"):
        check_file("--plot", Path("a.pdf"))
    with pytest.raises(UsageError, match=r"the folder .*none does not exist"):
        check_file("-o", tmp_path / "none" / "a.png")
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"pip install matplotlib"):
        check_file("-o", tmp_path / "a.png")
    check_file("-o", tmp_path / "a.npz", (".npz",))  # which needs none
