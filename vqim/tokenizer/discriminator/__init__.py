"""Discriminators: images to logits of being real. Each has an `image_size`, and float32 logits [B, ...]."""
