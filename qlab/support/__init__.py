"""What every room uses and what knows none of them: errors, processes, memory, precision, progress, words."""
