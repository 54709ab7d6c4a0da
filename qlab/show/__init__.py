"""Showing: figures, tables and controls over results that have been computed."""
