"""Networks that are not trained here. Their arrays come from a package, a file or another run."""
