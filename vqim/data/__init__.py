"""Input data: sources, decoding, augmentation, loaders that restart exactly, and the token cache.

    source.py       where images come from: .npz arrays (the embedded emoji set), IDX files
    folder.py       a folder of image files
    tar_shards.py   images in tar archives, read where they lie
    lmdb_images.py  images in an LMDB database, as LSUN is shipped
    decode.py       bytes of an image file -> RGB array
    transforms.py   crop, resize, flip to the size that a model needs
    order.py        which example is read when, and the random numbers of its augmentation
    faults.py       corrupt images: warnings, counts, and an error if there are too many
    prefetch.py     reading ahead in threads
    loader.py       endless training batches, and evaluation passes
    images.py       `Images`: a source with its transforms
    token_cache.py  `Tokens`: the same for tokens that a tokenizer has written before
    checksums.py    checksums of the token cache's rows and files
    image_arrays.py images that a user passes from Python, checked
"""
