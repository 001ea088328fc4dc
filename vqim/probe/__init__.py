"""Linear probes: how well a linear classifier reads classes off frozen features."""
