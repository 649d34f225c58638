"""Exercises that check themselves: write a function, and learn whether it is correct, where it is wrong, and why.

    from refdiff import exercises

    exercises.check("softmax", my_softmax)   # correct, or where it is wrong and, if the mistake is known, its name
    exercises.names()                        # all exercises, in the order of the notebooks
    exercises.signature("eq1")               # what the function is called with

The notebooks say what each function computes. The truth is refdiff's own function, in float64.
"""

from refdiff.exercises.check import Feedback, check, names, signature

__all__ = ["Feedback", "check", "names", "signature"]
