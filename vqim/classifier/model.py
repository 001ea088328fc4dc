"""The contract for image classifiers, and a network that can be trained as one.

    B batch, C image channels, H W image size, h w latent size, D width, Y classes
"""
from typing import Protocol

from einops import reduce
from torch import Tensor, nn

from vqim.contracts.context import Context
from vqim.frozen.from_run import FromRun
from vqim.nn.layers import Dense, LayerNorm
from vqim.state.init import Constant
from vqim.state.leaf import Spec, State
from vqim.tokenizer.model import Encoder


class Classifier(Protocol):
    """A trained classifier: a frozen network (`vqim.contracts.frozen.Frozen`) that selects or judges images.

    Attributes:
      num_classes: Y, the number of classes.
      image_size: height and width of the images that it takes.
    """

    num_classes: int
    image_size: int

    def init_spec(self) -> Spec:
        """The frozen arrays that it needs."""
        ...

    def __call__(self, arrays: State, images_BCHW: Tensor, *, context: Context) -> Tensor:
        """Class logits, float32 [B, Y], of images in [0, 1]."""
        ...


class ImageClassifier(nn.Module):
    """A tokenizer's encoder, its latents averaged over all positions, and a softmax layer.

    The last layer starts at zero: every class is equally likely before training.

    Args:
      encoder: an encoder from any family, trained from scratch.
      image_size: height and width of the images, in pixels.
      num_classes: Y, the number of classes.
    """

    def __init__(self, encoder: Encoder, image_size: int, num_classes: int):
        super().__init__()
        if num_classes < 2:
            raise ValueError(f"num_classes must be at least 2, got {num_classes}")
        encoder.latent_size(image_size)
        self.encoder, self.image_size, self.num_classes = encoder, image_size, num_classes
        self.norm = LayerNorm(encoder.width)
        self.head = Dense(encoder.width, num_classes, Constant(0.0))

    def forward(self, images_BCHW: Tensor, context: Context) -> Tensor:
        """Images in [0, 1] to logits [B, Y], float32."""
        latents_BhwD = self.encoder(images_BCHW, context.fold("encoder"))
        pooled_BD = reduce(latents_BhwD.float(), "b h w d -> b d", "mean")
        return self.head(self.norm(pooled_BD, context), context).float()


class TrainedClassifier(FromRun):
    """A classifier that another run has trained (`vqim.classifier.objective`).

    Args:
      network: the network, built as that run built it.
      run: the directory of the run; its newest checkpoint is read when the arrays are needed.
    """

    def __init__(self, network: ImageClassifier, run: str):
        super().__init__(network, run, "classifier")
        self.image_size, self.num_classes = network.image_size, network.num_classes
