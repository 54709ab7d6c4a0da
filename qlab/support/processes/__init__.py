"""Processes of their own: how they start, what they return, and what they may take at most."""
