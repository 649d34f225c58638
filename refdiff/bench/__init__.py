"""Speed and memory, measured beside other libraries in pairs.

Every library has a process of its own (`processes.py`), which keeps its threads and its model. The process that
measures (`measure.py`) asks one, then the other, then the first again: a change of the machine's load reaches both,
and only the ratio of two neighbours counts. The machine's own ceilings are measured before and after them in the same
way (`ceilings.py`).
"""
