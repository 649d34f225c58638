"""Live comparison with transformers and torch (extra `parity`): run in CI, not by the README's test command."""
