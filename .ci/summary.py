"""Add up pytest's result files, and end with one line; tests that CI is there for may not be skipped.

What the compiler of CUDA said of registers is printed: for each kernel the most that any of its variants uses.
"""

import re
import sys
from pathlib import Path
from xml.etree import ElementTree

ALL_RUN = ("parity", "cluster", "browser")
"""Of these files every test must have run; of the others those of these modules:"""
MODULES = ("tests.cuda.test_nvrtc", "tests.cuda.test_cupy_uses")

passed = failed = skipped = 0
used: dict[str, tuple[int, ...]] = {}
for path in map(Path, sys.argv[1:]):
    tree = ElementTree.parse(path)
    for case in tree.iter("testcase"):
        if path.stem == "slow" and case.get("classname") in MODULES and case.find("skipped") is not None:
            sys.exit(f"{case.get('classname')}.{case.get('name')} was skipped: {case.find('skipped').get('message')}")
        said = case.findtext("system-out") or "" if case.get("classname") == MODULES[0] else ""
        for kernel, *counts in re.findall(r" sm_\d+ (\w+) [^:\n]*: (\d+) registers, (\d+) stack, (\d+) spilled", said):
            most = zip(used.get(kernel, (0, 0, 0)), map(int, counts), strict=True)
            used[kernel] = tuple(max(pair) for pair in most)
    for suite in tree.iter("testsuite"):
        total, bad, left_out = (
            int(suite.get("tests", 0)),
            int(suite.get("failures", 0)) + int(suite.get("errors", 0)),
            int(suite.get("skipped", 0)),
        )
        print(f"{path.stem}: {total - bad - left_out} passed, {bad} failed, {left_out} skipped")
        passed += total - bad - left_out
        failed += bad
        skipped += left_out
        if path.stem in ALL_RUN and (left_out or not total):
            sys.exit(f"{path.stem}: {left_out} of {total} tests were skipped; every one has to run")
for kernel, (registers, stack, spilled) in sorted(used.items()):
    print(f"{kernel}: at most {registers} registers, {stack} bytes of stack, {spilled} spilled")
print(f"{passed} passed, {failed} failed, {skipped} skipped")
