"""Comparisons that anyone can run again: python -m bench (or make bench); see __main__ for what is measured and how."""
