"""Models opened once: where they lie, what they are, their stored weights as plain ones, tokenizer, texts."""
