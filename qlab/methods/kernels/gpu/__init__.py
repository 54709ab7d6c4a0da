"""Kernels in Triton, for NVIDIA's GPUs: there some ten small operations a column let the GPU wait for Python."""
