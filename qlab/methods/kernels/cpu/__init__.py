"""Kernels that numba compiles, for CPUs: PyTorch goes through the memory once for each small operation, these once for all of them."""
