"""Each layer: by hand · properties · errors · precision · any backend. Sizes are different primes: a swapped axis fails."""
