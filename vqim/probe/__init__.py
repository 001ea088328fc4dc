"""Linear probes: how well a linear classifier predicts classes from frozen features."""
