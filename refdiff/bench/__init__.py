"""Speed and memory, measured beside other libraries in pairs.

`measure.py` runs each library in a process of its own (`processes.py`) and asks one, then the other, then the first
again: a change of the machine's load reaches both, and only the ratio of two neighbours counts. `rows.py` says what can
be measured, `side.py` how; each library adds a few steps (`refdiff_side.py`, `peers.py`). The machine's own limits are
measured in the same way, before and after each pair (`ceilings.py`).
"""
