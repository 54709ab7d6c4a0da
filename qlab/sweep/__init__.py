"""Sweeps: many models and recipes by one file, run by processes of this machine, and one table at the end."""
