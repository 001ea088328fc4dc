"""The benchmark's cases: our programs and others' on the same work. `launch.benchmark` times them.

    B images in a batch, S tokens of an image, D width, L layers, V vocabulary
"""
import atexit
import dataclasses
import functools
import math
import shutil
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from vqim.contracts.context import Context
from vqim.contracts.grid import Level, TokenGrid
from vqim.contracts.learning import Computed, Learner, OneLearner
from vqim.contracts.placing import place
from vqim.contracts.runtime import Runtime
from vqim.data.folder import ImageFolder
from vqim.data.images import Images
from vqim.data.source import Emoji
from vqim.data.transforms import RandomResizedCrop
from vqim.nn.module import apply, arrays_spec
from vqim.nn.transformer import lay_out_arrays
from vqim.optim.adamw import AdamW
from vqim.optim.schedules import Constant
from vqim.prior.autoregressive import AutoregressivePrior
from vqim.prior.masked import MaskedPrior
from vqim.prior.masked_sampler import MaskedSampler
from vqim.prior.sampler import StepwiseSampler
from vqim.state.leaf import State
from vqim.tokenizer.cnn import CNNDecoder, CNNEncoder
from vqim.tokenizer.model import ImageTokenizer
from vqim.tokenizer.objective import TokenizerObjective
from vqim.tokenizer.quantizer.vector import VectorQuantizer
from vqim.tokenizer.terms import L2
from vqim.tokenizer.vit import ViTDecoder, ViTEncoder
from vqim.training.gradient_task import GradientTask
from vqim.training.state import start

from . import benchmark_packages as packages
from . import benchmark_peers as peers

Model = TypeVar("Model", bound=nn.Module)

TIMM = "timm, vector-quantize-pytorch"

NUM_FILLING_STEPS = 8

NUM_FILES, FILE_SIZE = 64, 256


@dataclasses.dataclass(frozen=True)
class Size:
    """How large the networks and the work are; tokenizer and prior have the same transformers.

    In bfloat16, parameters that are trained stay in float32, and peers train under torch.autocast; all else is cast.
    """

    image_size: int
    patch_size: int
    width: int
    num_layers: int
    num_heads: int
    vocabulary: int
    batch_size: int
    dtype: torch.dtype = torch.float32

    @property
    def grid(self) -> TokenGrid:
        """One code a patch."""
        side = self.image_size // self.patch_size
        return TokenGrid((Level(side, side, 1, self.vocabulary),))

    @property
    def num_tokens(self) -> int:
        """S."""
        return self.grid.num_positions

    @property
    def cnn(self) -> tuple[int, tuple[int, ...]]:
        """Channels and multipliers of VQGAN's encoder and decoder for as many tokens."""
        num_levels = self.patch_size.bit_length()
        return max(32, self.width // 8), (1,) * (num_levels - 2) + (2, 2)

    @property
    def plain(self) -> tuple[int, int, int, int, int]:
        """The arguments of `PlainPrior`."""
        return self.width, self.num_layers, self.num_heads, self.vocabulary, self.num_tokens


SIZES = {
    "tiny": Size(8, 4, 32, 2, 2, 64, 2),
    "quickstart": Size(32, 4, 256, 4, 4, 1024, 32),
    "short": Size(64, 8, 768, 12, 12, 8192, 8),
    "base": Size(128, 8, 768, 12, 12, 8192, 8),
}


@dataclasses.dataclass
class Case:
    """Work that each contestant does once when it is called.

    Attributes:
      unit: what `amount` counts.
      amount: how much of it a call does.
      contestants: the calls by name, ours first; each returns a tensor to wait for.
      missing: the peers that cannot run it, and why.
      num_bytes: the least that has to be read from memory, where that may bound a call.
    """

    unit: str
    amount: int
    contestants: dict[str, Callable[[], Tensor]]
    missing: dict[str, str] = dataclasses.field(default_factory=dict)
    num_bytes: int = 0

    def add(self, peer: str, make: Callable[[str], dict[str, Callable[[], Tensor]]]) -> None:
        """Adds a peer's contestants, given its name, or why it is missing."""
        if why := packages.why_missing(peer):
            self.missing[peer] = why
        else:
            self.contestants |= make(peer)


def sample_ar(size: Size, runtime: Runtime) -> Case:
    """All tokens of a batch by an autoregressive prior, one at a time, without classes."""
    prior = AutoregressivePrior(size.grid, 0, size.width, size.num_layers, size.num_heads, 4 * size.width, 0.0)
    plain = peers.PlainPrior(*size.plain, causal=True).to(size.dtype)
    head_and_blocks = sum(math.prod(leaf.shape) for name, leaf in arrays_spec(prior).items() if "table" not in name)
    cache = size.batch_size * size.num_tokens * size.num_layers * size.width * 2
    # Every step reads the weights, and on the average half of the cache.
    case = Case("tokens", size.batch_size * size.num_tokens, {
        "vqim": _draw(StepwiseSampler(), prior, size, runtime),
        "vqim, int8": _draw(StepwiseSampler(int8=True), prior, dataclasses.replace(size, dtype=torch.float32), runtime),
        "plain, static cache": lambda: plain.sample(size.batch_size),
    }, num_bytes=size.num_tokens * size.dtype.itemsize * (head_and_blocks + cache // 2))
    work = size.batch_size, size.num_tokens, size.vocabulary
    case.add("transformers GPT-2", lambda name: {
        f"{name}, {cache} cache": functools.partial(
            packages.gpt2_draw, packages.gpt2(*size.plain).to(size.dtype), *work, cache)
        for cache in ("static", "dynamic")})
    case.add("x-transformers", lambda name: {
        name: functools.partial(packages.x_draw, packages.x_decoder(*size.plain).to(size.dtype), *work)})
    return case


def sample_masked(size: Size, runtime: Runtime) -> Case:
    """All tokens of a batch by a masked prior in eight steps, without classes."""
    prior = MaskedPrior(size.grid, 0, size.width, size.num_layers, size.num_heads, 4 * size.width, 0.0)
    plain = peers.PlainPrior(*size.plain, causal=False).to(size.dtype)
    return Case("tokens", size.batch_size * size.num_tokens, {
        "vqim": _draw(MaskedSampler(NUM_FILLING_STEPS), prior, size, runtime),
        "plain": lambda: plain.fill(size.batch_size, NUM_FILLING_STEPS),
    }, {"muse-maskgit-pytorch": "it draws from texts alone, which T5 encodes"})


def train_prior(size: Size, runtime: Runtime) -> Case:
    """One step of an autoregressive prior with AdamW."""
    prior = AutoregressivePrior(size.grid, 0, size.width, size.num_layers, size.num_heads, 4 * size.width, 0.0)
    tokens_BNK = _tokens(size, runtime)
    plain, tokens_BS = peers.PlainPrior(*size.plain, causal=True), tokens_BNK[..., 0]
    case = Case("images", size.batch_size, {
        "vqim": _train(_Tokens(prior), {"tokens": tokens_BNK}, size, runtime),
        "plain": _train_plain(plain, size, lambda model: model.loss(tokens_BS))})
    case.add("transformers GPT-2", lambda name: {name: _train_plain(
        packages.gpt2(*size.plain), size, lambda model: model(tokens_BS, labels=tokens_BS).loss)})
    case.add("x-transformers", lambda name: {name: _train_plain(
        packages.x_decoder(*size.plain), size, lambda model: packages.x_loss(model, tokens_BS, size.vocabulary))})
    return case


def train_tokenizer(size: Size, runtime: Runtime) -> Case:
    """One step of a ViT-VQGAN on the squared error alone, with AdamW."""
    objective = TokenizerObjective(_tokenizer(size), _learner, [L2()])
    images = runtime.put({"images": _images(size)})
    images_BCHW = _floats(size)
    case = Case("images", size.batch_size, {
        "vqim": _train(objective, images, size, runtime),
        "plain": _train_plain(_tokenizer_of(peers.PlainTokenizer, size), size, lambda plain: plain.loss(images_BCHW))})
    case.add(TIMM, lambda name: {name: _train_plain(
        _tokenizer_of(packages.TimmTokenizer, size), size, lambda model: model.loss(images_BCHW))})
    return case


def train_cnn(size: Size, runtime: Runtime) -> Case:
    """One step of VQGAN's encoder and decoder on the squared error alone, with AdamW."""
    channels, multipliers = size.cnn
    quantizer: Any = VectorQuantizer(size.width, size.width, size.vocabulary, 32)
    network = (channels, multipliers, 2, size.width)
    tokenizer = ImageTokenizer(CNNEncoder(*network), quantizer, CNNDecoder(*network), size.image_size)
    plain, images_BCHW = peers.PlainCNN(channels, multipliers, size.width, size.vocabulary), _floats(size)
    case = Case("images", size.batch_size, {
        "vqim": _train(TokenizerObjective(tokenizer, _learner, [L2()]), runtime.put({"images": _images(size)}),
                       size, runtime),
        "plain": _train_plain(plain, size, lambda model: model.loss(images_BCHW))})
    case.add("diffusers VQModel", lambda name: {name: _train_plain(
        packages.vq_model(channels, multipliers, size.width, size.vocabulary), size,
        lambda model: packages.vq_loss(model, images_BCHW))})
    return case


def data(size: Size, runtime: Runtime) -> Case:
    """Batches of JPEG files of 256x256, read, decoded, cut and flipped, by two threads or processes."""
    folder = Path(tempfile.mkdtemp(prefix="vqim_benchmark_"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    source = Emoji("train")
    for number in range(NUM_FILES):
        image_HWC = np.asarray(source[number * len(source) // NUM_FILES].image)
        Image.fromarray(image_HWC).resize((FILE_SIZE, FILE_SIZE)).save(folder / f"{number:03}.jpg")
    num_batches = max(1, 256 // size.batch_size)
    images = Images(functools.partial(ImageFolder, folder), size.image_size, RandomResizedCrop(), num_threads=2)
    ours = iter(images.training(size.batch_size, seed=0))
    theirs = iter(torch.utils.data.DataLoader(
        peers.PlainImages(folder, size.image_size, 2**40), size.batch_size, num_workers=2))
    return Case("images", num_batches * size.batch_size, {
        "vqim": lambda: _last(torch.from_numpy(next(ours)["images"]) for _ in range(num_batches)),
        "torch's DataLoader": lambda: _last(next(theirs) for _ in range(num_batches))})


def encode(size: Size, runtime: Runtime) -> Case:
    """The tokens of a batch of images."""
    images_BCHW = _floats(size)
    cast_BCHW = images_BCHW.to(size.dtype)
    case = Case("images", size.batch_size, {
        "vqim": _apply(_tokenizer(size), "tokens", images_BCHW, size, runtime),
        "plain": functools.partial(_cast_tokenizer(peers.PlainTokenizer, size).encode, cast_BCHW)})
    case.add(TIMM, lambda name: {
        name: functools.partial(_cast_tokenizer(packages.TimmTokenizer, size).encode, cast_BCHW)})
    return _no_gradients(case)


def decode(size: Size, runtime: Runtime) -> Case:
    """The images of a batch of tokens."""
    tokens_BNK = _tokens(size, runtime)
    case = Case("images", size.batch_size, {
        "vqim": _apply(_tokenizer(size), "images", tokens_BNK, size, runtime),
        "plain": functools.partial(_cast_tokenizer(peers.PlainTokenizer, size).decode, tokens_BNK[..., 0])})
    case.add(TIMM, lambda name: {
        name: functools.partial(_cast_tokenizer(packages.TimmTokenizer, size).decode, tokens_BNK[..., 0])})
    return _no_gradients(case)


class _Tokens(OneLearner):
    """A prior on tokens that are there already."""

    name = "prior"

    def __init__(self, prior: AutoregressivePrior):
        self.prior, self.learner = prior, _learner(name=self.name, module=prior)

    def check_data(self, data: Any) -> None:
        """Accepts any."""

    def compute(
        self, leaves: Any, arrays: State, batch: dict[str, Tensor], context: Context, program: str,
    ) -> Computed:
        """See `vqim.contracts.learning.Objective`."""
        loss, metrics = apply(self.prior.loss, leaves[self.name], batch["tokens"], None, context)
        return Computed({self.name: loss}, metrics)


def _learner(*, name: str, module: nn.Module, start_step: int = 0) -> Learner:
    return Learner(name, module, AdamW(), Constant(1e-4), start_step)


def _draw(sampler: Any, prior: nn.Module, size: Size, runtime: Runtime) -> Callable[[], Tensor]:
    arrays = place(arrays_spec(prior), 0, runtime)
    draw = sampler.bind(prior, runtime, size.batch_size, size.dtype)
    labels_B, numbers_B = np.full(size.batch_size, -1, np.int32), np.arange(size.batch_size)
    return lambda: draw(arrays, labels_B, numbers_B, 0)


def _train(objective: Any, batch: dict[str, Tensor], size: Size, runtime: Runtime) -> Callable[[], Tensor]:
    """One step of a task, of which the loss is waited for."""
    task = GradientTask(objective, dtype="bfloat16" if size.dtype == torch.bfloat16 else "float32")
    state = start(task.init_spec(), 0, runtime).arrays
    step = runtime.compile(task.train_step)
    program = objective.program(0)

    def call() -> Tensor:
        scalars = runtime.scalars({**task.host_scalars(0), "step": 0, "seed": 0})
        loss: Tensor = step(state, batch, scalars, runtime.kernels, program)["loss"]
        return loss

    return call


def _train_plain(model: Model, size: Size, loss_of: Callable[[Model], Tensor]) -> Callable[[], Tensor]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def call() -> Tensor:
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=size.dtype == torch.bfloat16):
            loss = loss_of(model)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return call


def _apply(model: nn.Module, method: str, x: Tensor, size: Size, runtime: Runtime) -> Callable[[], Tensor]:
    """With kernels in the dtype in which it computes, as `vqim.load` has them."""
    arrays = place(arrays_spec(model), 0, runtime)
    if size.dtype != torch.float32:
        arrays |= lay_out_arrays(model, arrays, runtime.kernels, size.dtype)
    return lambda: apply(getattr(model, method), arrays, x, Context(runtime.kernels, size.dtype))


def _last(batches: Iterable[Tensor]) -> Tensor:
    *_, last = batches
    return last


def _no_gradients(case: Case) -> Case:
    """The same calls under torch.no_grad."""
    return dataclasses.replace(case, contestants={
        name: torch.no_grad()(call) for name, call in case.contestants.items()})


def _tokenizer(size: Size) -> ImageTokenizer:
    quantizer: Any = VectorQuantizer(size.width, size.width, size.vocabulary, 32)
    network = (size.width, size.num_layers, size.num_heads, 4 * size.width)
    return ImageTokenizer(
        ViTEncoder(size.image_size, size.patch_size, *network),
        quantizer, ViTDecoder(size.image_size, size.patch_size, *network), size.image_size)


def _tokenizer_of(kind: Callable[..., Model], size: Size) -> Model:
    return kind(size.image_size, size.patch_size, size.width, size.num_layers, size.num_heads, size.vocabulary)


def _cast_tokenizer(kind: Callable[..., Model], size: Size) -> Model:
    """A tokenizer that is not trained, with its parameters in the dtype in which it computes."""
    return _tokenizer_of(kind, size).to(size.dtype).eval()


def _images(size: Size) -> np.ndarray:
    shape = (size.batch_size, size.image_size, size.image_size, 3)
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


def _floats(size: Size) -> Tensor:
    return torch.from_numpy(_images(size)).movedim(-1, 1).contiguous() / 255


def _tokens(size: Size, runtime: Runtime) -> Tensor:
    shape = (size.batch_size, size.num_tokens, 1)
    return runtime.put({"tokens": np.random.default_rng(0).integers(0, size.vocabulary, shape)})["tokens"]


CASES: dict[str, Callable[[Size, Runtime], Case]] = {
    "sample_ar": sample_ar, "sample_masked": sample_masked, "train_tokenizer": train_tokenizer,
    "train_cnn": train_cnn, "train_prior": train_prior, "encode": encode, "decode": decode, "data": data,
}
