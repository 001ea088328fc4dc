"""How well StyleGAN2's discriminator tells emoji from blurred ones after a few steps; a script, not a test.

    python -m tests.tokenizer.discriminator.telling

Blurred is an image of half the size, enlarged again: 21.1 dB, as near as small tokenizers come. It learns on the
training split, with the paper's optimizer (section 5.1) and R1 as in gin/exp/emoji_ablations/paper.gin; printed
is the area under the ROC curve on the validation split: 0.5 for guessing, 1 for all pairs in order.

    B batch, C image channels, H W image size, N images of a split
"""
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vqim.contracts.context import Context
from vqim.contracts.placing import place
from vqim.data.source import Emoji
from vqim.evaluation.distances import psnr
from vqim.nn.module import apply, arrays_spec
from vqim.runtime.torch import TorchRuntime
from vqim.tokenizer.discriminator.losses import discriminator_loss, r1_penalty
from vqim.tokenizer.discriminator.stylegan2 import StyleGAN2Discriminator

BATCH_SIZE, R1_WEIGHT, R1_EVERY = 32, 0.0064, 16


def load(split: str) -> Tensor:
    """All images of a split, [N, C, H, W] in [0, 1], halved to 32x32."""
    source = Emoji(split)
    images = [np.asarray(source[number].image) for number in range(len(source))]
    return F.avg_pool2d(torch.from_numpy(np.stack(images)).movedim(-1, 1).float() / 255, 2)


def blurred(images_BCHW: Tensor) -> Tensor:
    """Half the size and back."""
    return F.interpolate(F.avg_pool2d(images_BCHW, 2), scale_factor=2, mode="bilinear")


def area(scores_N: Tensor, others_M: Tensor) -> float:
    """The share of pairs in which the first score is larger; half of the ties."""
    differences_NM = scores_N[:, None] - others_M
    return float((differences_NM > 0).float().mean() + (differences_NM == 0).float().mean() / 2)


def areas(learning_rate: float, counts: list[int], seed: int = 0) -> list[float]:
    """The area after each of so many steps."""
    runtime = TorchRuntime()
    discriminator, context = StyleGAN2Discriminator(32, max_channels=32), Context(runtime.kernels)
    arrays = {name: array.requires_grad_() for name, array in
              place(arrays_spec(discriminator), seed, runtime).items()}
    optimizer = torch.optim.AdamW(list(arrays.values()), learning_rate, (0.9, 0.99), weight_decay=1e-4)
    train_NCHW, validation_NCHW = load("train"), load("validation")
    generator, found = torch.Generator().manual_seed(seed), []
    for step in range(max(counts)):
        images_BCHW = train_NCHW[torch.randint(len(train_NCHW), (BATCH_SIZE,), generator=generator)]
        signed_BCHW = (2 * images_BCHW - 1).requires_grad_(step % R1_EVERY == 0)
        real_B = apply(discriminator.forward, arrays, (signed_BCHW + 1) / 2, context)
        fake_B = apply(discriminator.forward, arrays, blurred(images_BCHW), context)
        loss = discriminator_loss("non_saturating", real_B, fake_B)
        if step % R1_EVERY == 0:
            loss = loss + R1_WEIGHT * R1_EVERY / 2 * r1_penalty(real_B, signed_BCHW)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step + 1 in counts:
            with torch.no_grad():
                whole = validation_NCHW[:len(validation_NCHW) // 4 * 4].split(BATCH_SIZE)
                logits = [torch.cat([apply(discriminator.forward, arrays, change(part), context) for part in whole])
                          for change in (lambda part: part, blurred)]
            found.append(area(*logits))
    return found


def main() -> None:
    """Prints the table."""
    images = load("validation")
    print(f"blurred: {float(psnr(blurred(images), images).mean()):.1f} dB")
    counts = [30, 60, 120, 240]
    for rate in (1e-4, 2e-3):
        for seed in range(3):
            print(f"rate {rate:g}, seed {seed}, after {counts} steps:",
                  "  ".join(f"{value:.3f}" for value in areas(rate, counts, seed)), flush=True)


if __name__ == "__main__":
    main()
