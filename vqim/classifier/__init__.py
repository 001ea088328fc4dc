"""Image classifiers, which judge samples: their contract, and one that this project trains."""
