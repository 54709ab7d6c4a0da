"""What a walk keeps: activations, a journal of what is done, and which device does what."""
