"""The two kinds of tests in the conformance suite: a case against the truth, and a relation between two runs."""
