"""Stage 2: priors, which model the distribution of tokens."""
