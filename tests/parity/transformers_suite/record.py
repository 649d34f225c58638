"""Run pytest and write what became of each test: `python -m tests.parity.transformers_suite.record FILE ARGUMENTS`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest


class Outcomes:
    """A plugin of pytest. A test with a failed subtest has failed; the first reason counts."""

    def __init__(self) -> None:
        self.found: dict[str, tuple[str, str]] = {}

    def pytest_runtest_logreport(self, report: Any) -> None:
        before = self.found.get(report.nodeid, ("", ""))[0]
        if before == "failed" or (report.passed and (before or report.when != "call")):
            return
        lines = [line[2:].strip() for line in str(report.longrepr or "").splitlines() if line.startswith("E ")]
        self.found[report.nodeid] = (report.outcome, lines[0][:300] if lines else str(report.longrepr or "")[-300:])

    def pytest_collectreport(self, report: Any) -> None:
        if report.failed:
            self.found[f"{report.nodeid}::test_collected"] = ("failed", str(report.longrepr)[-300:])


if __name__ == "__main__":
    outcomes = Outcomes()
    options = ["-q", "-p", "no:cacheprovider", "-W", "ignore", "-c", "/dev/null", "--rootdir", str(Path.cwd())]
    pytest.main([*options, *sys.argv[2:]], plugins=[outcomes])
    Path(sys.argv[1]).write_text(json.dumps(outcomes.found), encoding="utf-8")
