"""`--prompts-file`: many prompts → JSON lines, in batches, in shards, on one machine or a cluster, and resumable."""

from refdiff.cli.prompts_file.run import run

__all__ = ["run"]
