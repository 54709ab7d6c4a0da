"""The environment check: what is installed, what works on this machine, what is known to be unsafe, and the command that mends it."""

from qlab.doctor.examine import Finding, examine

__all__ = ["Finding", "examine"]
