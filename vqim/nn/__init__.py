"""Blocks that tokenizers, discriminators and priors are made of."""
