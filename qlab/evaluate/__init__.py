"""Measuring: quality, speed and memory of any model or artifact, by one protocol."""
