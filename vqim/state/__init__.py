"""What a training state is made of: named arrays, and how each gets its first value."""
