"""Each layer: by hand · properties · precision; of all together: any backend (test_init.py) · errors (test_errors.py).

Sizes are different primes, so that a swapped axis fails.
"""
