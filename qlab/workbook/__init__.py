"""Lessons, the runner that executes them, their records and their report."""
