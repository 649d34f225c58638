"""transformers' own tests, run against refdiff: `python -m tests.parity.transformers_suite`.

The tests come from transformers' source distribution, or from a checkout with more of them (`--tests FOLDER`). They
are rewritten into a temporary folder; nothing of them is stored here. Each file runs twice: untouched, on transformers,
which says what can pass on this machine; and with the classes of `border.py` in place of transformers'. What passes
there and not here must be in `exceptions.toml`, with the reason.
"""
