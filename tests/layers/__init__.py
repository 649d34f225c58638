"""Each layer: by hand · properties · errors · precision · any backend.

Sizes are different primes, so that a swapped axis fails.
"""
