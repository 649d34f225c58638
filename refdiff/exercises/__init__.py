"""Exercises with automatic feedback: whether a learner's function is correct, where it is wrong, and why.

    from refdiff import exercises

    exercises.check("softmax", my_softmax)   # correct, or where it is wrong and, if the mistake is known, its name
    exercises.names()                        # all exercises, in the order of the notebooks
    exercises.signature("eq1")               # its arguments and their shapes

The notebooks say what each function computes. The truth is refdiff's own function, in float64.
"""

from refdiff.exercises.check import Feedback, check, names, signature

__all__ = ["Feedback", "check", "names", "signature"]
