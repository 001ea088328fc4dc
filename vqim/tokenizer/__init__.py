"""Stage 1: images to tokens and back."""
