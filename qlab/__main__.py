"""`python -m qlab` and the program `qlab` are the command line."""

import sys


def main() -> None:
    """Run it; Ctrl-C while it is still being loaded is no traceback either."""
    try:
        from qlab.cli import main as command_line

        command_line()
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
