"""compressed-tensors, the format of llm-compressor and vLLM: `reading` decodes it, `writing` packs grouped integers."""
