"""`--prompts-file`: many prompts → JSON lines, in batches, in shards, on one machine or a cluster, and resumable."""
