"""Test the tests: change one thing in the source, run the tests that should notice, list what nobody noticed.

    python -m tests.mutation --path refdiff/layers --at-least 97
    python -m tests.mutation --path refdiff/model --path refdiff/generation/sampling.py --at-least 90
    python -m tests.mutation --path refdiff/layers/activation.py --function mish --function d_mish
    python -m tests.mutation --sample 100 --seed "$(git rev-parse HEAD)" --jobs 2 --at-least 90

mutants.py makes them, planted.py runs tests on one. equivalent.toml lists those that no test could tell from the
source, each with its reason; the score leaves them out. Everything runs in a copy of the tree.
"""
