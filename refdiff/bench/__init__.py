"""How fast is it, and how much memory does it take? Measured beside other libraries, in pairs.

Every library has a process of its own (`child.py`), in which it keeps its threads and its model. The process that
measures (`run.py`) asks one, then the other, then the first again: what the machine does meanwhile befalls both, and
only the ratio of two neighbours counts. What the machine could do at most is measured before and after them in the same
way (`ceilings.py`).
"""
