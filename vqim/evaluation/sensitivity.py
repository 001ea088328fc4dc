"""Sensitivity of tokens: the share of them that change when an image changes in ways that hardly show.

SeQ-GAN section 6.2 shows that codes of a tokenizer change under noise that nobody sees, which makes them hard to
predict. Here it is a number, for any tokenizer.

    B batch, N positions, K codes a position, V vocabulary, C image channels, H W image size
"""
import io
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, cast

import numpy as np
from PIL import Image
from torch import Tensor

from vqim.contracts.context import Context
from vqim.contracts.data import Batch, Dataset
from vqim.contracts.evaluation import About, Evaluation, Items, Tally
from vqim.contracts.frozen import Frozen
from vqim.contracts.grid import TokenGrid
from vqim.contracts.runtime import Runtime
from vqim.contracts.task import Task
from vqim.evaluation.distances import Averages, psnr
from vqim.evaluation.passes import SplitPass
from vqim.evaluation.tally_state import join, part_of
from vqim.evaluation.token_metrics import grid_of
from vqim.state.leaf import State
from vqim.tokenizer.model import images_to_float

NOISE_SIGMA, JPEG_QUALITY = 0.01, 95


def noise(image_HWC: np.ndarray) -> np.ndarray:
    """Gaussian noise, sigma 0.01 of the range; the same for the same image."""
    key = zlib.crc32(np.ascontiguousarray(image_HWC).tobytes())
    noise_HWC = np.random.Generator(np.random.Philox(key=key)).standard_normal(image_HWC.shape)
    return (image_HWC + 255 * NOISE_SIGMA * noise_HWC).round().clip(0, 255).astype(np.uint8)


def jpeg(image_HWC: np.ndarray) -> np.ndarray:
    """Written as JPEG of quality 95, with colours at half the resolution (4:2:0), and read again."""
    file = io.BytesIO()
    Image.fromarray(image_HWC).save(file, "JPEG", quality=JPEG_QUALITY, subsampling="4:2:0")
    return np.asarray(Image.open(file))


def shift(image_HWC: np.ndarray) -> np.ndarray:
    """Moved to the right by one pixel; the first column is there twice."""
    return np.concatenate([image_HWC[:, :1], image_HWC[:, :-1]], 1)


def resize(image_HWC: np.ndarray) -> np.ndarray:
    """Scaled to 7/8 of its sides and back, by an antialiased bicubic filter."""
    height, width = image_HWC.shape[:2]
    small = Image.fromarray(image_HWC).resize((round(width * 7 / 8), round(height * 7 / 8)), Image.Resampling.BICUBIC)
    return np.asarray(small.resize((width, height), Image.Resampling.BICUBIC))


DISTURBANCES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "noise": noise, "jpeg": jpeg, "shift": shift, "resize": resize}
"""What is done to an image, uint8 [H, W, C]; the result has the same shape."""


class Disturbances(SplitPass):
    """Tokens of images, and those of the same images after each of `DISTURBANCES`; of a tokenizer or a prior's own.

    Args:
      metrics, batch_size, every, split, section: see `SplitPass`.
    """

    view = "tokens"

    def begin(self, task: Task, data: Dataset, state: State, runtime: Runtime) -> Evaluation:
        """See `vqim.contracts.evaluation.Evaluator`."""
        return super().begin(task, cast(Dataset, _DisturbedData(data)), state, runtime)

    def batch_like(self, task: Task, data: Dataset) -> Batch:
        """See `Pass`."""
        return _disturbed(super().batch_like(task, data))

    def items(
        self, task: Task, state: State, batch: dict[str, Tensor], context: Context, pictures: bool = True,
    ) -> Items:
        """See `Pass`."""
        def tokens(name: str) -> Tensor:
            found_BNK: Tensor = task.objective.tokens(  # type: ignore[attr-defined]
                state, {"images": batch[name]}, context.evaluation())
            return found_BNK

        originals_BCHW = images_to_float(batch["images"])
        return Items(
            batch["valid"], batch["labels"].long(), originals_BCHW, tokens_BNK=tokens("images"),
            disturbed_tokens={name: tokens(name) for name in DISTURBANCES},
            measures={f"{name}_psnr": psnr(originals_BCHW, images_to_float(batch[name])) for name in DISTURBANCES})


class _DisturbedData:
    """Data whose batches for evaluation have the disturbed images too; made on the host, where JPEG is written."""

    def __init__(self, data: Dataset):
        self._data = data

    def __getattr__(self, name: str) -> Any:
        return getattr(self._data, name)

    def evaluation(self, *args: Any, **kwargs: Any) -> Iterator[Batch]:
        """As of the data themselves."""
        return map(_disturbed, self._data.evaluation(*args, **kwargs))


def _disturbed(batch: Batch) -> Batch:
    """A batch with its disturbed images beside it, by the names of the disturbances."""
    if "images" not in batch:
        raise ValueError("evaluators: Disturbances needs images, and this run's data are tokens. Bind train.data to "
                         "the images, as the tokenizer's run has them")
    return {**batch, **{name: np.stack([change(image) for image in batch["images"]])
                        for name, change in DISTURBANCES.items()}}


class TokenChanges:
    """The share of codes that differ from the undisturbed image's at the same place, for each disturbance.

    Results are `token_changes/noise` and so on, over all N K codes of an image. With several codes a position also
    `token_changes/noise_positions`, the share of positions with any other code. `token_changes/unrelated_images` is
    the share that differs between two images of the set, at the same place, over all pairs: what a disturbance would
    reach that leaves nothing. `token_changes/noise_psnr` says how much pixels have changed, in dB.
    """

    needs = ("tokens_BNK", "disturbed_tokens", "measures")
    frozen: Mapping[str, Frozen] = {}

    def observe(self, items: Items, frozen: Mapping[str, State], context: Context) -> dict[str, Tensor]:
        """See `Metric`."""
        assert items.tokens_BNK is not None
        found = {"tokens": items.tokens_BNK}
        for name, disturbed_BNK in items.disturbed_tokens.items():
            changed_BNK = disturbed_BNK != items.tokens_BNK
            found[name] = changed_BNK.float().mean((1, 2))
            if changed_BNK.shape[2] > 1:
                found[f"{name}_positions"] = changed_BNK.any(2).float().mean(1)
        return found | dict(items.measures)

    def tally(self, about: About) -> Tally:
        """See `Metric`."""
        return _Changes(grid_of(about, type(self).__name__))

    def describe(self) -> dict[str, str]:
        """See `Described`."""
        return {"definition": "share of codes that differ from the undisturbed image's at the same place",
                "rounding": "8 bits",
                **{name: (change.__doc__ or "").rstrip(".") for name, change in DISTURBANCES.items()}}


class _Changes:
    def __init__(self, grid: TokenGrid):
        self._means = Averages()
        self._counts_NKV = np.zeros(
            (grid.num_positions, grid.num_channels, max(level.vocabulary for level in grid.levels)), np.int64)

    def add(self, observed: Mapping[str, np.ndarray], valid_B: np.ndarray) -> None:
        """See `Tally`."""
        self._means.add({name: value for name, value in observed.items() if name != "tokens"}, valid_B)
        positions_N1, channels_1K = np.ogrid[:self._counts_NKV.shape[0], :self._counts_NKV.shape[1]]
        for tokens_NK in observed["tokens"][valid_B]:
            self._counts_NKV[positions_N1, channels_1K, tokens_NK] += 1

    def result(self) -> dict[str, Any]:
        """The shares, and the changes of pixels."""
        found: dict[str, Any] = {f"token_changes/{name}": value for name, value in self._means.result().items()}
        num_images = int(self._counts_NKV[0, 0].sum())
        if num_images > 1:
            counts = self._counts_NKV.astype(np.float64)
            same_NK = (counts * (counts - 1)).sum(2) / (num_images * (num_images - 1))
            found["token_changes/unrelated_images"] = 1 - float(same_NK.mean())
        return found

    def state(self) -> dict[str, np.ndarray]:
        """See `Resumable`."""
        return join({"means": self._means.state(), "counts": {"NKV": self._counts_NKV}})

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """See `Resumable`."""
        self._means.restore(part_of(state, "means"))
        self._counts_NKV = state["counts/NKV"].copy()
