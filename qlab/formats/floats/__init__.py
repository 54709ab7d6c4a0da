"""Checkpoints of others whose weights are floats of eight or four bits, FP8 and MXFP4: read, not written."""
