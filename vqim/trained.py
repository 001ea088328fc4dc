"""The Python interface: opens a trained run for use.

    model = vqim.load("runs/quickstart/prior")
    tokens = model.tokens(images)                 # int64 [N, positions, channels]
    images = model.images(tokens)                 # uint8 [N, H, W, 3]
    images = model.sample(["Flags", "Objects"], temperature=0.9)
    images = model.edit(images, mask, ["Flags", "Objects"])

It needs only the run's directory, not its data.

    N images, P positions, K codes a position, H W image size, h w latent size, L layers, D features
"""
import functools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

import vqim.registry.components  # noqa: F401  gin knows the components from here on
from vqim.checkpoint.errors import NoCheckpointError
from vqim.checkpoint.exported import Exported
from vqim.checkpoint.manager import CheckpointManager
from vqim.checkpoint.reader import Checkpoint
from vqim.classifier.model import Classifier
from vqim.contracts.context import Context
from vqim.contracts.placing import own_rows
from vqim.contracts.prior import Draw, Featuring
from vqim.contracts.runtime import Runtime
from vqim.data.image_arrays import to_bytes, to_image_arrays, to_rgb
from vqim.data.images import Images
from vqim.evaluation.passes import place_frozen
from vqim.evaluation.rejection import check_classifier, verdicts_of
from vqim.evaluation.samples import bind_sampler, draw_batches
from vqim.nn.module import apply
from vqim.nn.transformer import lay_out_arrays
from vqim.prior.editing import check_fillable, match, token_mask
from vqim.prior.objective import PriorObjective
from vqim.prior.requests import check_tokens, class_number, one_each
from vqim.registry.config import Config, ConfigError
from vqim.registry.run_config import config_from, read_config
from vqim.registry.runtimes import make_runtime
from vqim.registry.session import separate
from vqim.state import sections
from vqim.state.leaf import State, select
from vqim.tokenizer.model import Codes, ImageTokenizer, float_to_images, images_to_float
from vqim.training.data_identity import DataChangedError
from vqim.training.experiment import Experiment
from vqim.training.facts import Facts, facts_from, read_facts
from vqim.training.state import restore_arrays

Labels = Sequence[str | int] | np.ndarray | int
"""Class names or numbers, one for each image; or the number of images, for a run without classes."""


def load(
    path: str, *, step: int | Literal["latest_valid"] | None = None, runtime: Literal["auto", "torch", "xla"] = "auto",
    ema: bool = True, tokenizer_run: str | None = None, batch_size: int = 64,
) -> "Trained":
    """Opens the run of a tokenizer or of a prior, or a file that `launch.checkpoint export` has made of one.

    The caller's own gin configuration, if there is one, stays as it is.

    Args:
      path: the run's directory, a URL of one such as s3://bucket/run, or the exported file.
      step: the step of the checkpoint; by default the newest; 'latest_valid' is the newest that is whole, also of the
        tokenizer's run.
      runtime: what to compute with; 'auto' takes a TPU if there is one, else torch.
      ema: whether networks are read as their moving averages, where the run keeps them.
      tokenizer_run: another run whose decoder turns a prior's tokens into images; it has to use the same tokens.
      batch_size: the number of images to process at a time.

    Raises:
      ConfigError: there is no run, the run has neither a tokenizer nor a prior, or the other tokenizer makes other
        tokens.
    """
    with separate() as again:
        exported = Exported(path) if Path(path).is_file() else None
        config = read_config(path) if exported is None else config_from(exported.about["config"])
        opened = open_run(config, path, make_runtime(config, runtime), step=step, ema=ema, batch_size=batch_size,
                          exported=exported)
        opened.refuse_others()
        if isinstance(opened.experiment.data, Images):
            opened.experiment.data.open_within(again)
    if tokenizer_run is None:
        return opened
    return opened.with_tokenizer(load(tokenizer_run, step=step_of_another(step), runtime=runtime, ema=ema,
                                      batch_size=batch_size))


def step_of_another(step: int | Literal["latest_valid"] | None) -> Literal["latest_valid"] | None:
    """The step to open of another run beside one that is opened at `step`: the newest, or the newest that is whole."""
    return "latest_valid" if step == "latest_valid" else None


def open_run(
    config: Config, workdir: str, runtime: Runtime, *, step: int | Literal["latest_valid"] | None = None,
    ema: bool = True, batch_size: int = 64, needs_data: bool = False, exported: Exported | None = None,
) -> "Trained":
    """Opens a run from its configuration, with the arrays in one checkpoint; see `load`.

    With `needs_data`, it also opens and checks the data. With `exported`, an open file takes the place of the run's
    checkpoints.

    Raises:
      ConfigError: there is no such checkpoint.
    """
    experiment: Experiment = config.call("train", needs_data=needs_data)
    try:
        checkpoint = exported or CheckpointManager(f"{workdir}/checkpoints").open(step, needed=sections.READING)
        facts = read_facts(workdir) if exported is None else facts_from(exported.about["run"])
    except (NoCheckpointError, ValueError) as error:
        wanted = ". The run has to be trained first" * (isinstance(error, NoCheckpointError) and step is None)
        raise ConfigError(f"{error}{wanted}") from error
    if exported is not None:
        if step not in (None, "latest_valid", exported.step):
            raise ConfigError(f"step must be that of the file, {exported.step}, got {step}")
        if exported.about["ema"] and not ema:
            raise ConfigError(f"{workdir} was exported with moving averages in place of the parameters; "
                              "ema=False needs one that was exported with --noema")
    if needs_data:
        try:
            experiment.check_tokens(checkpoint.read)
        except DataChangedError as error:
            raise ConfigError(f"train.data: {error}") from error
    spec = sections.reading_spec(experiment.task.init_spec())
    if not ema or exported is not None:
        spec = {name: leaf for name, leaf in spec.items() if not name.startswith("ema/")}
    arrays = restore_arrays(spec, experiment.seed, runtime, checkpoint)
    return Trained(experiment, facts, runtime, arrays, checkpoint, batch_size)


class Trained:
    """A tokenizer, or a prior with its tokenizer.

    Images may be NumPy arrays [N, H, W, 3] or [H, W, 3], torch tensors of these shapes or [N, 3, H, W], PIL images, or
    a list of images. Their values are uint8, or floats in [0, 1]. They must have the run's image size: other sizes and
    values are errors. `prepare` brings an image of any size to this size.

    Attributes:
      experiment: what the run's configuration describes.
      facts: what is known about its data.
      runtime: what it computes with.
      arrays: its networks' arrays, on the devices.
      step: the step of the checkpoint.
      checkpoint: the checkpoint, which is not removed while this object lives, or the exported file.
    """

    def __init__(
        self, experiment: Experiment, facts: Facts, runtime: Runtime, arrays: State, checkpoint: Checkpoint | Exported,
        batch_size: int = 64,
    ):
        self.experiment, self.facts, self.runtime, self.arrays = experiment, facts, runtime, arrays
        self.checkpoint, self.step = checkpoint, checkpoint.step
        multiple = runtime.num_batch_shards
        self._batch_size = -(-batch_size // multiple) * multiple
        objective: Any = experiment.task.objective
        self._tokenizer: ImageTokenizer | None = getattr(objective, "tokenizer", None)
        is_prior = isinstance(objective, PriorObjective)
        self._tokenizer_arrays = (select(arrays, sections.frozen("tokenizer")) if is_prior
                                  else sections.network_arrays(arrays, objective.name))
        self._context = Context(runtime.kernels, experiment.task.evaluation_dtype)
        self._compiled: dict[str, Callable[..., Any]] = {}
        self._draws: dict[Any, Draw] = {}

    def refuse_others(self) -> None:
        """Raises ConfigError for a run that has neither a tokenizer nor a prior, such as a classifier's."""
        if self._tokenizer is None:
            raise ConfigError("vqim.load opens runs of tokenizers and of priors; this one trains a "
                              f"{self.experiment.task.objective.name}. launch.evaluate measures it")

    @property
    def tokenizer(self) -> ImageTokenizer:
        """The network; ValueError for a run that has none, such as a classifier's."""
        if self._tokenizer is None:
            raise ValueError(f"this run has no tokenizer, it trains a {self.experiment.task.objective.name}")
        return self._tokenizer

    @property
    def prior(self) -> PriorObjective:
        """The prior's objective; ValueError for a run that has none."""
        objective = self.experiment.task.objective
        if not isinstance(objective, PriorObjective):
            raise ValueError(f"this needs the run of a prior, this one trains a {objective.name}")
        return objective

    def prepare(self, image: Any) -> np.ndarray:
        """Brings an image of any size to what the run's evaluation sees: uint8 [H, W, 3]."""
        prepare = getattr(self.experiment.data, "prepare", None)
        if prepare is None:
            raise ValueError("this run was trained on cached tokens, which say nothing of how images were cut")
        prepared: np.ndarray = prepare(to_rgb(image))
        return prepared

    def tokens(self, images: Any) -> np.ndarray:
        """The tokens of images, int64 [N, P, K]."""
        return self._over_images("tokens", images, lambda arrays, images_BCHW: apply(
            self.tokenizer.tokens, arrays, images_BCHW, self._context))[0]

    def encode(self, images: Any) -> Codes:
        """The codes of images that a decoder takes, float32 NumPy arrays [N, h, w, ...]."""
        def run(arrays: State, images_BCHW: Tensor) -> list[Tensor]:
            codes = apply(self.tokenizer.encode, arrays, images_BCHW, self._context).codes
            return [codes.vectors_BhwZ, codes.latents_BhwD]

        return Codes(*self._over_images("encode", images, run))  # type: ignore[arg-type]

    def decode(self, codes: Codes) -> np.ndarray:
        """The images of codes from `encode`, uint8 [N, H, W, 3]."""
        def run(arrays: State, batch: dict[str, Tensor]) -> Tensor:
            given = Codes(*(batch[name].to(self._context.dtype) for name in ("vectors", "latents")))
            return float_to_images(apply(self.tokenizer.decode, arrays, given, self._context).mean_BCHW.clamp(0, 1))

        arrays = {"vectors": np.asarray(codes.vectors_BhwZ), "latents": np.asarray(codes.latents_BhwD)}
        return self._over("decode", arrays, run)[0]

    def images(self, tokens: Any) -> np.ndarray:
        """The images of tokens [N, P, K], uint8 [N, H, W, 3]."""
        tokens_NPK = check_tokens(np.asarray(tokens), self.tokenizer)
        return self._over("images", {"tokens": tokens_NPK}, lambda arrays, batch: float_to_images(
            apply(self.tokenizer.images, arrays, batch["tokens"], self._context)))[0]

    def reconstruct(self, images: Any) -> np.ndarray:
        """Encodes images to tokens and decodes them again: uint8 [N, H, W, 3]."""
        return self.images(self.tokens(images))

    def sample(
        self, labels: Labels, *, seed: int = 0, first: int = 0, given: np.ndarray | None = None,
        **settings: Any,
    ) -> np.ndarray:
        """Draws images, uint8 [N, H, W, 3].

        Args:
          labels: class names or numbers, one for each image; or the number of images, for a run without classes.
          seed: seed for the draws; image number i from one seed is the same in any call.
          first: the number of the first image.
          given: int64 tokens [N, P, K] to keep; -1 where they are to be drawn.
          settings: settings for the run's sampler, such as temperature, guidance, num_steps.
        """
        return self.images(self.sample_tokens(labels, seed=seed, first=first, given=given, **settings))

    def sample_tokens(
        self, labels: Labels, *, seed: int = 0, first: int = 0, given: np.ndarray | None = None,
        **settings: Any,
    ) -> np.ndarray:
        """As `sample`, but returns the tokens, int64 [N, P, K]."""
        labels_N = self.labels(one_each(labels))
        if given is not None:
            given = check_tokens(np.asarray(given), self.tokenizer, may_be_missing=True)
            if len(given) != len(labels_N):
                raise ValueError(f"given must have tokens for each of {len(labels_N)} images, got {len(given)}")
        batches = draw_batches(self.draw(**settings), self.experiment.task, self.arrays, self.runtime, labels_N,
                               self._batch_size, seed, given, first)
        return np.concatenate([self.runtime.fetch([batch["tokens"]])[0] for batch in batches])[:len(labels_N)]

    def edit(
        self, images: Any, mask: Any, labels: Labels | None = None, *, seed: int = 0, first: int = 0,
        paste: bool = True, **settings: Any,
    ) -> np.ndarray:
        """Draws a part of images anew, uint8 [N, H, W, 3]: the tokens of masked pixels. All other tokens stay.

        Args:
          images: one image for each label, or one for all.
          mask: bools [H, W] or [N, H, W], True where pixels are to be drawn anew.
          labels: as in `sample`; by default, classes are not told.
          seed, first, settings: as in `sample`.
          paste: whether pixels that are not masked are the images' own. Otherwise the decoder makes them of the images'
            own tokens, without a seam.

        Raises:
          ValueError: the run's sampler cannot fill such a mask, or an argument is wrong.
        """
        images_NHWC = to_image_arrays(images, self.tokenizer.image_size)
        labels = one_each(len(images_NHWC) if labels is None else labels)
        images_NHWC, mask_NHW = match(images_NHWC, mask, len(labels))
        masked_NPK = token_mask(mask_NHW, self.tokenizer.grid)
        check_fillable(masked_NPK, self.prior.sampler, len(self.tokenizer.grid.levels))
        given_NPK = np.where(masked_NPK, -1, self.tokens(images_NHWC))
        drawn_NHWC = self.sample(labels, seed=seed, first=first, given=given_NPK, **settings)
        return np.where(mask_NHW[..., None], drawn_NHWC, to_bytes(images_NHWC)) if paste else drawn_NHWC

    def draw(self, **settings: Any) -> Draw:
        """The function that draws a batch of tokens with these settings; ValueError for one that does not fit."""
        key = tuple(sorted(settings.items()))
        if key not in self._draws:
            sampler = self.prior.sampler.with_settings(**settings)
            self._draws[key] = bind_sampler(self.experiment.task, self.runtime, self._batch_size, sampler)
        return self._draws[key]

    def judge(self, classifier: Classifier) -> Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
        """A function of images, uint8 [N, H, W, 3], and their wanted classes [N]: what a classifier says of them.

        It gives the log-probabilities of the wanted classes [N], and whether these are the likeliest ones [N].

        Raises:
          ValueError: the classifier is for other classes or images than the prior's.
        """
        check_classifier(classifier, self.prior.num_classes, self.tokenizer.image_size)
        arrays = select(place_frozen({"classifier": classifier}, self.runtime), sections.frozen("classifier"))

        def logits(arrays: State, batch: dict[str, Tensor]) -> Tensor:
            return classifier(arrays, images_to_float(batch["images"]), context=Context(self.runtime.kernels))

        def verdicts(images_NHWC: np.ndarray, labels_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            found = self._over(f"judged by {id(classifier)}", {"images": images_NHWC}, logits, arrays)
            (scores_N,), (hits_N,) = verdicts_of(found, labels_N)
            return scores_N, hits_N

        return verdicts

    def labels(self, classes: Sequence[str | int] | np.ndarray) -> np.ndarray:
        """Class names or numbers as int32 numbers; -1 is an image whose class is not told."""
        return np.array([class_number(word, self.prior, self.facts.class_names) for word in classes], np.int32)

    def features(self, images: Any) -> np.ndarray:
        """Features from each layer of the prior, averaged over positions: float32 [N, L, D]."""
        network, tokens_NPK = self.prior.prior, self.tokens(images)
        if not isinstance(network, Featuring):
            raise ValueError(f"{type(network).__name__} gives no features")

        def run(arrays: State, batch: dict[str, Tensor]) -> Tensor:
            return apply(network.features, arrays, batch["tokens"], self._context).transpose(0, 1)

        return self._over("features", {"tokens": tokens_NPK}, run, self.prior.prior_arrays(self.arrays))[0]

    def with_tokenizer(self, other: "Trained") -> "Trained":
        """The same prior with another tokenizer's decoder; ConfigError if that tokenizer has other tokens."""
        own = self._deciding()
        theirs = other._deciding()
        differing = [name for name in sorted(own.keys() | theirs.keys())
                     if name not in own or name not in theirs or not np.array_equal(own[name], theirs[name])]
        if differing or self.tokenizer.grid != other.tokenizer.grid:
            raise ConfigError(f"tokenizer_run must make the same tokens as the prior's own tokenizer; they differ in "
                              f"{', '.join(differing[:5]) or 'their grids'}")
        both = Trained(self.experiment, self.facts, self.runtime, self.arrays, self.checkpoint, self._batch_size)
        both._tokenizer, both._tokenizer_arrays = other.tokenizer, other._tokenizer_arrays
        return both

    @functools.cached_property
    def _computing_arrays(self) -> State:
        """The tokenizer's arrays with its blocks' kernels in the dtype of products, which each call would cast anew."""
        arrays, dtype = self._tokenizer_arrays, self._context.dtype
        if dtype == torch.float32:
            return arrays
        lay_out = self.runtime.compile(functools.partial(
            lay_out_arrays, self.tokenizer, kernels=self.runtime.kernels, dtype=dtype))
        return {**arrays, **lay_out(arrays)}

    def _deciding(self) -> dict[str, np.ndarray]:
        names = self.tokenizer.deciding_arrays()
        return dict(zip(names, self.runtime.fetch([self._tokenizer_arrays[name] for name in names]), strict=True))

    def _over_images(self, name: str, images: Any, run: Callable[[State, Tensor], Any]) -> list[np.ndarray]:
        """Runs `run` on images, in batches; floats are not rounded."""
        images_NHWC = to_image_arrays(images, self.tokenizer.image_size)

        def on_batch(arrays: State, batch: dict[str, Tensor]) -> Any:
            images_BHWC = batch["images"]
            is_bytes = images_BHWC.dtype == torch.uint8
            return run(arrays, images_to_float(images_BHWC) if is_bytes else images_BHWC.permute(0, 3, 1, 2))

        return self._over(f"{name} {images_NHWC.dtype}", {"images": images_NHWC}, on_batch)

    def _over(
        self, name: str, arrays_N: dict[str, np.ndarray], run: Callable[[State, dict[str, Tensor]], Any],
        network_arrays: State | None = None,
    ) -> list[np.ndarray]:
        """Runs `run`, compiled once under a name, on batches of a set; the last batch is padded.

        It gets the tokenizer's arrays, or `network_arrays`. What comes back in another floating dtype becomes float32.
        """
        if name not in self._compiled:
            def program(arrays: State, batch: dict[str, Tensor]) -> list[Tensor]:
                with torch.no_grad():
                    found = run(arrays, batch)
                    return [array.float() if array.is_floating_point() else array
                            for array in (found if isinstance(found, list | tuple) else [found])]

            self._compiled[name] = self.runtime.compile(program)
        parts = []
        for batch, count in _batches(arrays_N, self._batch_size):
            own = own_rows(self._batch_size, self.runtime)
            device = self.runtime.put({key: value[own] for key, value in batch.items()})
            fetched = self.runtime.fetch(self._compiled[name](network_arrays or self._computing_arrays, device))
            parts.append([array[:count] for array in fetched])
        return [np.concatenate(arrays) for arrays in zip(*parts, strict=True)]


def _batches(arrays_N: dict[str, np.ndarray], size: int) -> Iterator[tuple[dict[str, np.ndarray], int]]:
    """Batches of one size, each with its number of real elements; the last is padded with its last element."""
    total = len(next(iter(arrays_N.values())))
    for start in range(0, total, size):
        numbers = np.minimum(np.arange(start, start + size), total - 1)
        yield {name: array[numbers] for name, array in arrays_N.items()}, min(size, total - start)
