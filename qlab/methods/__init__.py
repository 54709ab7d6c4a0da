"""Quantization methods: pure functions from a weight matrix (and statistics of its inputs) to a quantized tensor."""
