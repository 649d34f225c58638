"""Inputs on which mistakes show: fixed lists by profile, their structures and their numbers."""
