"""Networks that are not trained here: those that a package ships, those of files, those of other runs."""
