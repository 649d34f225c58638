"""Add up pytest's result files, and end with one line; no test of parity, cluster and browser may be skipped."""

import sys
from pathlib import Path
from xml.etree import ElementTree

passed = failed = skipped = 0
for path in map(Path, sys.argv[1:]):
    for suite in ElementTree.parse(path).iter("testsuite"):
        total, bad, left_out = (
            int(suite.get("tests", 0)),
            int(suite.get("failures", 0)) + int(suite.get("errors", 0)),
            int(suite.get("skipped", 0)),
        )
        print(f"{path.stem}: {total - bad - left_out} passed, {bad} failed, {left_out} skipped")
        passed += total - bad - left_out
        failed += bad
        skipped += left_out
        if path.stem in ("parity", "cluster", "browser") and (left_out or not total):
            sys.exit(f"{path.stem}: {left_out} of {total} tests were skipped; every one has to run")
print(f"{passed} passed, {failed} failed, {skipped} skipped")
