"""Speed and memory of refdiff and other libraries, measured in pairs.

- `rows.py` lists the kinds of row and has the procedure for each, on inputs of `inputs.py` and models of `sizes.py`.
- `sides.py` declares the steps of a procedure, and implements them for each library.
- `runner.py` starts a process for each side (`processes.py`) and lets them take turns. Only the ratio of two
  consecutive measurements counts, because a change of the machine's load affects both. It measures the limits of the
  machine before and after each pair.
- `report.py` evaluates the answers.
"""
