"""Bugs of public attention kernels, replayed in NumPy: the exam of `check` and `diagnose`."""
