"""A tokenizer's reconstructions of images, for evaluation.

    B batch, C image channels, H W image size
"""
from torch import Tensor

from vqim.contracts.context import Context
from vqim.contracts.evaluation import Items
from vqim.contracts.grid import join
from vqim.nn.module import apply
from vqim.state.leaf import State
from vqim.tokenizer.model import ImageTokenizer, float_to_images, images_to_float


def reconstruct(
    model: ImageTokenizer, arrays: State, batch: dict[str, Tensor], context: Context, pictures: bool = True,
) -> Items:
    """Images, their tokens, and with `pictures` their reconstructions rounded to 8 bits as in an image file."""
    images_BCHW = images_to_float(batch["images"])
    if not pictures:
        quantized = apply(model.encode, arrays, images_BCHW, context)
        return Items(batch["valid"], batch["labels"].long(), images_BCHW, tokens_BNK=join(quantized.indices),
                     lookups=quantized.lookups)
    quantized, reconstruction = apply(model.forward, arrays, images_BCHW, context)
    rounded_BCHW = images_to_float(float_to_images(reconstruction.mean_BCHW.clamp(0, 1)))
    return Items(
        batch["valid"], batch["labels"].long(), images_BCHW, rounded_BCHW, join(quantized.indices),
        reconstruction.location_BCHW, reconstruction.log_scale_BCHW, lookups=quantized.lookups)

