"""`--prompts-file`: many prompts → JSON lines, in batches, in shards, and resumable."""
