"""Where a run happens: torch on a CPU or GPU, or XLA over a mesh of devices. Nothing else imports torch_xla."""
