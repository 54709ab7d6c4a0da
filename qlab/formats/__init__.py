"""How quantized tensors lie on disk for a runtime: AWQ, GPTQ, GGUF, bitsandbytes."""
