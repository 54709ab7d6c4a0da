"""Finished folders, and what making them takes."""
