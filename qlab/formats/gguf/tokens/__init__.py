"""The tokenizer in a GGUF file: written from a model's, and read back."""
