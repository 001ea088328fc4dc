"""Metrics for tokens: how codes are used, and how likely they are under a prior.

    B batch, N positions, K codes a position
"""
from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor

from vqim.contracts.context import Context
from vqim.contracts.evaluation import About, Histogram, Items, Tally
from vqim.contracts.frozen import Frozen
from vqim.contracts.grid import TokenGrid
from vqim.evaluation.codebook import GROUP, CodebookStatistics, count_codes, entropy_bits
from vqim.evaluation.codebook_diagnosis import Lookups, observe_lookup
from vqim.evaluation.distances import Averages
from vqim.evaluation.tally_state import join, part_of
from vqim.state.leaf import State


class CodebookUse:
    """How many codes are used and how evenly, for each level of tokens.

    Results are named `codebook/usage` and so on, or `codebook/level_0/usage` with several levels. `usage_per_batch` is
    ViT-VQGAN's "Codebook Usage" (Table 4). With several codes a position, these are of all channels together, and
    `codebook/channel_0/usage` and so on are of each.

    For reconstructions also `codebook/latent_distance` and so on (`codebook_diagnosis.Health`), and in words, as
    `codebook/diagnosis`, why codes are unused and what helps, if many are.
    """

    needs = ("tokens_BNK",)
    frozen: Mapping[str, Frozen] = {}

    def observe(self, items: Items, frozen: Mapping[str, State], context: Context) -> dict[str, Tensor]:
        """See `Metric`."""
        assert items.tokens_BNK is not None
        lookups = {f"{level}/{name}": value for level, lookup in enumerate(items.lookups)
                   for name, value in observe_lookup(lookup, context.kernels).items()}
        return {"tokens": items.tokens_BNK, **lookups}

    def tally(self, about: About) -> Tally:
        """See `Metric`."""
        return _Use(grid_of(about, type(self).__name__), about)

    def describe(self) -> dict[str, str]:
        """See `Described`."""
        return {"definition": f"share of codes that occur; per batch in groups of {GROUP} images of a fixed shuffle"}


class _Use:
    def __init__(self, grid: TokenGrid, about: About):
        self._grid, self._about, num_images = grid, about, about.num_items
        self._before = dict(about.memory)
        self._levels = [CodebookStatistics(level.vocabulary, num_images) for level in grid.levels]
        self._channels = [[CodebookStatistics(level.vocabulary, num_images) for _ in range(level.channels)]
                          if level.channels > 1 else [] for level in grid.levels]
        self._lookups = [Lookups(level.vocabulary) for level in grid.levels]

    def add(self, observed: Mapping[str, np.ndarray], valid_B: np.ndarray) -> None:
        """See `Tally`."""
        levels = zip(self._levels, self._channels, self._grid.split(observed["tokens"]), strict=True)
        for statistics, channels, indices in levels:
            statistics.add(indices, valid_B)
            for k, of_channel in enumerate(channels):
                of_channel.add(indices[..., k], valid_B)
        for number, lookups in enumerate(self._lookups):
            if found := part_of(observed, str(number)):
                lookups.add(found, valid_B)

    def state(self) -> dict[str, np.ndarray]:
        """See `Resumable`."""
        return join({name: statistics.state() for name, statistics in self._parts().items()})

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """See `Resumable`."""
        for name, statistics in self._parts().items():
            statistics.restore(part_of(state, name))

    def _parts(self) -> dict[str, CodebookStatistics | Lookups]:
        """Of each level in all and by channel, and its lookups, by names for the state."""
        parts: dict[str, CodebookStatistics | Lookups] = {
            str(level): statistics for level, statistics in enumerate(self._levels)}
        parts |= {f"{level}.lookups": lookups for level, lookups in enumerate(self._lookups)}
        return parts | {f"{level}.{k}": of_channel for level, channels in enumerate(self._channels)
                        for k, of_channel in enumerate(channels)}

    def result(self) -> dict[str, Any]:
        """The results of `CodebookStatistics.result` in all and by channel, and a histogram in all."""
        found: dict[str, Any] = {}
        levels = zip(self._grid.codebook_names, self._levels, self._channels, self._lookups, strict=True)
        for name, statistics, channels, lookups in levels:
            found |= {f"{name}/{measure}": value for measure, value in statistics.result().items()}
            for k, of_channel in enumerate(channels):
                found |= {f"{name}/channel_{k}/{measure}": value for measure, value in of_channel.result().items()}
            if health := lookups.result(statistics.counts_K):
                found |= {f"{name}/{measure}": value for measure, value in health.numbers().items()}
                if words := health.diagnosis(self._ages(name, statistics.counts_K)):
                    found[f"{name}/diagnosis"] = words
            codes_K = np.arange(len(statistics.counts_K))
            found[f"{name}/histogram"] = Histogram(np.repeat(codes_K, statistics.counts_K))
        return found

    def _ages(self, name: str, counts_K: np.ndarray) -> np.ndarray:
        """In how many measurements in a row, with this one, each code has been unused."""
        key = f"{self._about.protocol.get('split')}/{name}/unused"
        before_K = self._before.get(key, np.zeros(len(counts_K), np.int64))
        self._about.memory[key] = ages_K = np.where(counts_K == 0, before_K + 1, 0)
        return ages_K


class Likelihood:
    """A prior's measures of images' tokens; if these are bits, also the bits that the prior saves.

    `unigram_bits_per_token` is the entropy of the tokens' unigram distribution in each level, as a mean over positions.
    `bits_saved` is the share of it that the prior saves.
    """

    needs = ("tokens_BNK", "measures")
    frozen: Mapping[str, Frozen] = {}

    def observe(self, items: Items, frozen: Mapping[str, State], context: Context) -> dict[str, Tensor]:
        """See `Metric`."""
        assert items.tokens_BNK is not None
        return {**items.measures, "tokens": items.tokens_BNK}

    def tally(self, about: About) -> Tally:
        """See `Metric`."""
        return _Likelihood(grid_of(about, type(self).__name__))


class _Likelihood:
    def __init__(self, grid: TokenGrid):
        self._grid, self._means = grid, Averages()
        self._counts = [np.zeros(level.vocabulary, np.int64) for level in grid.levels]

    def add(self, observed: Mapping[str, np.ndarray], valid_B: np.ndarray) -> None:
        """See `Tally`."""
        self._means.add({name: value for name, value in observed.items() if name != "tokens"}, valid_B)
        for counts, indices in zip(self._counts, self._grid.split(observed["tokens"][valid_B]), strict=True):
            counts += count_codes(indices, len(counts))

    def values(self) -> dict[str, np.ndarray]:
        """See `ItemValues`: the prior's measures."""
        return self._means.values()

    def state(self) -> dict[str, np.ndarray]:
        """See `Resumable`."""
        return join({"means": self._means.state(),
                     "counts": {str(level): counts for level, counts in enumerate(self._counts)}})

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """See `Resumable`."""
        self._means.restore(part_of(state, "means"))
        self._counts = [part_of(state, "counts")[str(level)].copy() for level in range(len(self._counts))]

    def result(self) -> dict[str, Any]:
        """The means of the prior's measures, and the unigram entropy."""
        means = self._means.result()
        unigram = sum(level.num_positions * entropy_bits(counts)
                      for level, counts in zip(self._grid.levels, self._counts, strict=True))
        unigram /= self._grid.num_positions
        found = {**means, "unigram_bits_per_token": unigram}
        if "bits_per_token" in means:
            found["bits_saved"] = 1 - means["bits_per_token"] / unigram if unigram else 0.0
        return found


def grid_of(about: About, metric: str) -> TokenGrid:
    """The token grid of a metric's pass; ValueError if it has none."""
    if about.grid is None:
        raise ValueError(f"metrics: {metric} needs tokens_BNK, which {about.name} do not have here")
    return about.grid
