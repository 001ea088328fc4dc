"""Stage 2: the distribution of tokens."""
