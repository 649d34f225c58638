"""refdiff."""
