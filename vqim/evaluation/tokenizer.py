"""Measures an image tokenizer on a validation set: reconstructions and use of the codebook.

    B batch, C image channels, H W image size, N positions of all levels of tokens, K codes a position
"""
import functools
from typing import Any

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from vqim.evaluation.codebook import CodebookStatistics
from vqim.evaluation.lpips import AlexNetLpips
from vqim.evaluation.reconstruction import Averages, gradient_energy, l1, l2, psnr, ssim, to_bytes
from vqim.nn.context import Kernels
from vqim.state.leaf import State, prefixed, select
from vqim.tokenizer.grid import join
from vqim.tokenizer.losses import logit_laplace
from vqim.tokenizer.model import images_to_float
from vqim.tokenizer.task import TokenizerTask
from vqim.training.summaries import Histogram

_LPIPS = "evaluation/lpips_alexnet/"


class ReconstructionEvaluator:
    """PSNR, SSIM, l1, l2, logit-Laplace, LPIPS and sharpness of reconstructions, use of the codebook, and pictures.

    The model runs in float32 and in evaluation mode; reconstructions are rounded to 8 bits, as a picture file is,
    before they are compared. LPIPS on VGG16, `lpips`, is measured where the task has that network for its loss; on
    AlexNet, `lpips_alexnet`, where this evaluator has it. Sharpness is the gradient energy of all
    reconstructions over that of all pictures: 1 if they are alike, less if blurred, more if noisy.

    The use of codes is measured for each level of tokens: as `codebook/usage` and so on where there is one, as
    `codebook/level_0/usage` and so on where there are several. Of these, `usage_per_batch` is ViT-VQGAN's "Codebook
    Usage" (Table 4).

    Args:
      batch_size: pictures at a time, over all processes.
      every: steps between two measurements; 0 for the end alone.
      num_images: shown, each above its reconstruction; evenly spaced over the set.
      lpips: LPIPS on AlexNet, or None to do without.
    """

    def __init__(self, batch_size: int, every: int = 0, num_images: int = 16, lpips: AlexNetLpips | None = None):
        self.batch_size, self.every, self.num_images, self.lpips = batch_size, every, num_images, lpips
        self._program: Any = None
        self._constants: State = {}

    def __call__(self, task: TokenizerTask, data: Any, state: State, runtime: Any) -> dict[str, Any]:
        """See `vqim.training.task.Evaluator`."""
        def measure(arrays: State, batch: dict[str, Tensor]) -> dict[str, Tensor]:
            return _measure(task, self.lpips, arrays, batch, runtime.kernels)

        if self._program is None:
            self._program = runtime.compile(measure)
            self._constants = {
                name: runtime.place(name, leaf, functools.partial(leaf.init, name, leaf.shape, 0))
                for name, leaf in prefixed(_LPIPS, self.lpips.init_spec() if self.lpips else {}).items()}
        averages, grid = Averages(), task.model.grid
        statistics = [CodebookStatistics(level.vocabulary) for level in grid.levels]
        shown: list[np.ndarray] = []
        num_seen, stride = 0, max(1, data.num_examples("validation") // self.num_images)
        for batch in data.evaluation(
                self.batch_size // runtime.process_count,
                process_index=runtime.process_index, process_count=runtime.process_count):
            results = self._program({**state, **self._constants}, runtime.put(batch))
            valid_B, tokens_BNK, originals_BHWC, images_BHWC, *values = runtime.fetch(
                [results.pop(name) for name in ("valid", "tokens", "originals", "images")] + [*results.values()])
            averages.add(dict(zip(results, values, strict=True)), valid_B)
            for of_level, indices in zip(statistics, grid.split(tokens_BNK), strict=True):
                of_level.add(indices, valid_B)
            pairs = np.stack([originals_BHWC, images_BHWC], 1)[valid_B]
            shown.extend(pairs[-num_seen % stride::stride])
            num_seen += len(pairs)
        use: dict[str, Any] = {}
        for name, of_level in zip(grid.codebook_names, statistics, strict=True):
            use |= {f"{name}/{measure}": value for measure, value in of_level.result().items()}
            counts_K = of_level.counts_K
            use[f"{name}/histogram"] = Histogram(np.repeat(np.arange(len(counts_K)), counts_K))
        measures = averages.result()
        energy, of_originals = measures.pop("gradient_energy"), measures.pop("gradient_energy_of_originals")
        measures["sharpness"] = energy / of_originals if of_originals else 1.0
        return {
            **{f"evaluation/{name}": value for name, value in measures.items()},
            **use,
            "images/originals_and_reconstructions": _rows_of_pairs(np.stack(shown[:self.num_images])),
        }


def _measure(
    task: TokenizerTask, alexnet: AlexNetLpips | None, state: State, batch: dict[str, Tensor], kernels: Kernels,
) -> dict[str, Tensor]:
    """Values of each image, [B], the reconstructions in 8 bits, the codes."""
    with torch.no_grad():
        images_BCHW, quantized, reconstruction = task.reconstruct(state, batch, kernels)
        bytes_BHWC = to_bytes(reconstruction.mean_BCHW.clamp(0, 1))
        rounded_BCHW = images_to_float(bytes_BHWC)
        values = {
            "psnr": psnr(images_BCHW, rounded_BCHW), "ssim": ssim(images_BCHW, rounded_BCHW),
            "l1": l1(images_BCHW, rounded_BCHW), "l2": l2(images_BCHW, rounded_BCHW),
            "gradient_energy": gradient_energy(rounded_BCHW),
            "gradient_energy_of_originals": gradient_energy(images_BCHW)}
        if reconstruction.location_BCHW is not None and reconstruction.log_scale_BCHW is not None:
            values["logit_laplace"] = logit_laplace(
                images_BCHW, reconstruction.location_BCHW, reconstruction.log_scale_BCHW).mean((1, 2, 3))
        lpips = task.lpips(state, images_BCHW, rounded_BCHW)
        if lpips is not None:
            values["lpips"] = lpips
        if alexnet is not None:
            values["lpips_alexnet"] = alexnet(select(state, _LPIPS), images_BCHW, rounded_BCHW)
        # The whole batch's originals too: a host that loads a part of it has no others.
        return {**values, "valid": batch["valid"], "tokens": join(quantized.indices), "originals": batch["images"],
                "images": bytes_BHWC}


def _rows_of_pairs(pairs: np.ndarray) -> np.ndarray:
    """[B, 2, H, W, C] to [2B, H, W, C]: rows of eight originals, each over the row of their reconstructions."""
    rows = [pairs[i:i + 8] for i in range(0, len(pairs), 8)]
    return np.concatenate([rearrange(row, "b p h w c -> (p b) h w c") for row in rows])
