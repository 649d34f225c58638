"""`--prompts-file`: many prompts → JSON lines, in batches, and resumable."""
