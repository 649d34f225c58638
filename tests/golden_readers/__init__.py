"""Programs in other languages that read the oracle's test vectors."""
