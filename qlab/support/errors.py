"""The one exception for what a user can mend: faces print its message and exit 2, without a traceback."""


class UserError(Exception):
    """Says what was wrong, what was expected and what to do."""
