"""Discriminators: they map images to float32 logits [B, ...] of being real. Each has an `image_size`."""
