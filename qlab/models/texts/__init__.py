"""Texts for calibration, evaluation and training: where they come from, and how they become windows of tokens.

`windows.read_windows` is what everything else calls. `mixture` reads the names and weights that people type, `documents` opens one text,
`conversations` puts its records through the chat template, `builtin` holds the texts that every machine has.
"""
