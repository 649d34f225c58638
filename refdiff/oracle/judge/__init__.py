"""Judge a kernel that somebody else submits: `judge_file` runs its file in a process of its own, on hidden inputs.

The expected output is computed after the kernel's process has ended, so that it can be read nowhere, and the verdict is
reached here, so that nothing that the kernel patches, prints or exits with counts. Only bytes of arrays come back.

It is no security boundary: code that attacks the machine belongs in a container.
"""

from refdiff.browser import require_processes

require_processes("refdiff.oracle.judge")

from refdiff.oracle.judge.judging import Report, judge_file  # noqa: E402

__all__ = ["Report", "judge_file"]
