"""One pass over the decoder blocks of a model, a block in memory at a time."""
