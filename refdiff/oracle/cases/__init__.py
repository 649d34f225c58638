"""Inputs that reveal mistakes: fixed lists of cases by profile, their structures and their numbers."""
