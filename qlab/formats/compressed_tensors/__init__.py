"""compressed-tensors, the format of llm-compressor and vLLM: `scheme` is its configuration, `reading` decodes it, `writing` packs."""
