"""The parts of a training state: named arrays, and how each gets its first value."""
