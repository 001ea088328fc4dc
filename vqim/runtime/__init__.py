"""What runs compute with: torch on a CPU or GPU, or XLA over a mesh of devices. Only this package imports torch_xla."""
