"""`python -m qlab` is the command line."""

from qlab.cli import main

main()
