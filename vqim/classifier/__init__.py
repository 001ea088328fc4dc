"""Classifiers of images: a contract, one that this project trains, and torchvision's ResNets. They judge samples."""
