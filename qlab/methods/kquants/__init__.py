"""llama.cpp's block formats: K-quants and the older blocks of 32 weights."""
