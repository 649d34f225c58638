"""`refdiff help`."""

from __future__ import annotations

import pytest

from refdiff.cli import main


def test_an_unknown_command_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["help", "genrate"])
    assert "got 'genrate', expected one of generate, " in capsys.readouterr().err
