"""Speed and memory of refdiff and other libraries, measured in pairs.

- `rows.py` lists the kinds of row, and `measurements.py` has the procedure for each.
- `side.py` declares the steps of a procedure that every library implements: `refdiff_side.py` and `peers.py`.
- `runner.py` starts a process for each library (`processes.py`) and lets them take turns. Only the ratio of two
  consecutive measurements counts, because a change of the machine's load affects both.
- `ceilings.py` measures the limits of the machine before and after each pair.
- `report.py` evaluates the answers.
"""
