"""Kernels that numba compiles, for CPUs: a row of a column's operations in one pass, where PyTorch makes a pass of each."""
