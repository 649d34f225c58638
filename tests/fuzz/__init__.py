"""Broken and hostile files against everything that reads them; `python -m tests.fuzz --cases 20000` is the nightly run.

A case is (seed, number). It copies a small checkpoint, golden folder, trace or prompts file, changes one to three
things in it, and reads the result in a forked child with limits. Allowed is a result, or one `CheckpointError` or
`ValueError` of at most 2,000 printable characters, in bounded time and memory. Nothing outside the folder is opened.
"""
