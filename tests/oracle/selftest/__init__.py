"""The tester tested: mutants that must fail, correct kernels that must pass, and other rules on the same runs."""
