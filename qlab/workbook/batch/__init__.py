"""Lessons in batch: papermill executes them, and what is done is not done again."""
