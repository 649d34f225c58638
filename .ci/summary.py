"""Add up nox's reports and pytest's result files, and end with one line; fails where a session or a test did.

Tests that CI is there for may not be skipped. What the compiler of CUDA said of registers is printed: for each kernel
the most that any of its variants uses.
"""

import json
import re
import sys
from pathlib import Path
from xml.etree import ElementTree

ALL_RUN = ("parity", "browser")
"""Of these sessions every test must have run; of `slow` those of these modules:"""
MODULES = ("tests.cuda.test_nvrtc",)

problems: list[str] = []
registers: dict[str, tuple[int, ...]] = {}
passed = failed = skipped = 0
paths = [Path(argument) for argument in sys.argv[1:]]
for path in (path for path in paths if path.suffix == ".json"):
    for session in json.loads(path.read_text(encoding="utf-8"))["sessions"]:
        name = session["signatures"][-1]
        print(f"{session['duration']:6.0f} s  {name}: {session['result']}")
        if session["result"] != "success":
            problems.append(f"session {name}: {session['result']} {session['reason'] or ''}")
for path in (path for path in paths if path.suffix == ".xml"):
    tree = ElementTree.parse(path)
    for case in tree.iter("testcase"):
        name, omitted = f"{case.get('classname')}.{case.get('name')}", case.find("skipped")
        bad = next((case.find(kind) for kind in ("failure", "error") if case.find(kind) is not None), None)
        if bad is not None:
            problems.append(f"{name}: {(bad.get('message') or '').splitlines()[:1]}")
        if omitted is not None and path.stem == "slow" and case.get("classname") in MODULES:
            problems.append(f"{name} was skipped: {omitted.get('message')}")
        output = case.findtext("system-out") or "" if case.get("classname") == MODULES[0] else ""
        pattern = r" sm_\d+ (\w+) [^:\n]*: (\d+) registers, (\d+) stack, (\d+) spilled"
        for kernel, *counts in re.findall(pattern, output):
            most = zip(registers.get(kernel, (0, 0, 0)), map(int, counts), strict=True)
            registers[kernel] = tuple(max(pair) for pair in most)
    for suite in tree.iter("testsuite"):
        total, without = int(suite.get("tests", 0)), int(suite.get("skipped", 0))
        bad_count = int(suite.get("failures", 0)) + int(suite.get("errors", 0))
        print(f"{path.stem}: {total - bad_count - without} passed, {bad_count} failed, {without} skipped")
        passed, failed, skipped = passed + total - bad_count - without, failed + bad_count, skipped + without
        if path.stem in ALL_RUN and (without or not total):
            problems.append(f"{path.stem}: {without} of {total} tests were skipped; every one has to run")
for kernel, (used, stack, spilled) in sorted(registers.items()):
    print(f"{kernel}: at most {used} registers, {stack} bytes of stack, {spilled} spilled")
print(*problems, sep="\n")
print(f"{passed} passed, {failed} failed, {skipped} skipped")
sys.exit(1 if problems or not passed else 0)
