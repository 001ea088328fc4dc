"""Quantizers: latent vectors to codes and back."""
