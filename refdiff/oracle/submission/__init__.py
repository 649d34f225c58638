"""Judge a submitted kernel: `judge_file` runs its file in a process of its own, on hidden inputs.

The expected output is computed after the kernel's process has ended, so the kernel cannot read it. The verdict is
reached in this process, from the bytes of arrays, so nothing that the kernel patches, prints or exits with counts.

This is no security boundary: run code that may attack the machine in a container.
"""

from refdiff.browser import require_processes

require_processes("refdiff.oracle.submission")

from refdiff.oracle.submission.judging import JudgeReport, judge_file  # noqa: E402

__all__ = ["JudgeReport", "judge_file"]
