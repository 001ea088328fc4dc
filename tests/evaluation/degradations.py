"""How every distance orders real degradations of the emoji that ship with vqim; a script, not a test.

    python -m tests.evaluation.degradations 150                       # all sets
    python -m tests.evaluation.degradations 150 'noise of 20'         # one

The reference is every second of the first images of the training split; the sets are these images degraded, and the
images in between.
"""
import io
import sys

import numpy as np
import torch
from PIL import Image

from vqim.contracts.context import Context
from vqim.data.source import Emoji
from vqim.evaluation.distances import downscaled_copy, l1, l2, psnr, ssim, unit_range
from vqim.evaluation.extractors import ProxyFeatures, VGG16Features
from vqim.evaluation.measuring import compare_sets, measure_array
from vqim.frozen.alexnet import AlexNet
from vqim.frozen.efficientnet import EfficientNetLite0
from vqim.frozen.lpips import Lpips
from vqim.frozen.vgg16 import VGG16
from vqim.runtime.torch import TorchRuntime
from vqim.training.state import start


def jpeg(images_BHWC: np.ndarray, quality: int) -> np.ndarray:
    """The images through a JPEG file."""
    found = []
    for image_HWC in images_BHWC:
        file = io.BytesIO()
        Image.fromarray(image_HWC).save(file, "JPEG", quality=quality)
        found.append(np.asarray(Image.open(file)))
    return np.stack(found)


def noisy(images_BHWC: np.ndarray, deviation: float) -> np.ndarray:
    """Gaussian noise, of a deviation in levels of 255."""
    noise = np.random.default_rng(0).normal(0, deviation, images_BHWC.shape)
    return np.clip(np.round(images_BHWC + noise), 0, 255).astype(np.uint8)


def main(count: int, names: list[str]) -> None:
    """Prints a table with a row for each set, or for those with these names."""
    source = Emoji("train")
    images = np.stack([np.asarray(source[i].image) for i in range(2 * count)])
    # Both halves have images of all classes: the source is in the order of its classes.
    reference, others = images[::2], images[1::2]
    sets = {"identity": reference, "the other half": others, "JPEG, quality 75": jpeg(reference, 75),
            "JPEG, quality 10": jpeg(reference, 10), "blur 2x": downscaled_copy(reference, 2),
            "blur 4x": downscaled_copy(reference, 4), "noise of 5": noisy(reference, 5),
            "noise of 20": noisy(reference, 20)}
    extractors = [ProxyFeatures(EfficientNetLite0(64)), VGG16Features(VGG16())]
    runtime, lpips = TorchRuntime(), Lpips(AlexNet())
    lpips_arrays = start(lpips.init_spec(), 0, runtime).arrays

    real, columns = measure_array("reference", reference, extractors, runtime), None
    for name in names or sets:
        set_ = sets[name]
        results, _ = compare_sets(measure_array(name, set_, extractors, runtime), real, extractors)
        pair = unit_range(set_), unit_range(reference)
        results |= {name: measure(*pair).mean().item()
                    for name, measure in {"psnr": psnr, "ssim": ssim, "l1": l1, "l2": l2}.items()}
        with torch.no_grad():
            results["lpips_alexnet"] = lpips(lpips_arrays, *pair, context=Context(runtime.kernels)).mean().item()
        if columns is None:
            columns = [column for column in results if "_std" not in column]
            print(f"| set | {' | '.join(columns)} |\n|{' --- |' * (len(columns) + 1)}")
        print(f"| {name} | {' | '.join(f'{results[column]:.4g}' for column in columns)} |", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
