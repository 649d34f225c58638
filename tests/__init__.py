"""The tests, file for file as in refdiff/."""
