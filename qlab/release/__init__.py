"""A fine-tuned model from adapter to release."""
