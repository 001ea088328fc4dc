"""Checkpoints: named arrays, a config and data positions, written by many processes, read by any number."""
