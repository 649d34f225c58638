"""Speed and memory, measured beside other libraries in pairs.

`rows.py` has a record for each kind of row and `measurements.py` how it is measured, out of a few steps that each
library does in its own way (`side.py`; `refdiff_side.py`, `peers.py`). `runner.py` has one library's process
(`processes.py`) measure, then the other's, then the first's again: a change of the machine's load reaches both, and
only the ratio of two neighbours counts. The machine's own limits are measured in the same way, before and after each
pair (`ceilings.py`). `report.py` evaluates the answers.
"""
