"""What the conformance suite asks of a kernel: one case against the truth, one relation between two runs."""
