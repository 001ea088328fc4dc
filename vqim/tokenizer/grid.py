"""What a tokenizer promises about its tokens, and all that a prior knows of it."""
import dataclasses


@dataclasses.dataclass(frozen=True)
class Level:
    """One rectangle of tokens: `channels` codes of a vocabulary at each of height x width positions."""

    height: int
    width: int
    channels: int
    vocabulary: int


@dataclasses.dataclass(frozen=True)
class TokenGrid:
    """The tokens of one image; a sequence reads the levels in order, each in raster order."""

    levels: tuple[Level, ...]

    @property
    def num_positions(self) -> int:
        """Length N of the sequence [B, N, K]."""
        return sum(level.height * level.width for level in self.levels)

    def single_level(self, reader: str) -> Level:
        """The only level; ValueError, naming who asked, where there are several."""
        if len(self.levels) != 1:
            raise ValueError(f"{reader} reads one level of tokens, this tokenizer gives {len(self.levels)}")
        return self.levels[0]

    def as_lists(self) -> list[list[int]]:
        """[[height, width, channels, vocabulary], ...], for metadata."""
        return [list(dataclasses.astuple(level)) for level in self.levels]
