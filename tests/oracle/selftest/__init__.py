"""Tests of the tester's tester."""
