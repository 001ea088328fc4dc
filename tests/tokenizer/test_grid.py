"""Token grids: lengths, one level or several."""
import pytest

from vqim.tokenizer.grid import Level, TokenGrid

TWO_LEVELS = TokenGrid((Level(4, 8, 1, 512), Level(2, 2, 3, 256)))


def test_a_sequence_reads_all_levels():
    assert TWO_LEVELS.num_positions == 4 * 8 + 2 * 2


def test_lists_say_the_same():
    assert TWO_LEVELS.as_lists() == [[4, 8, 1, 512], [2, 2, 3, 256]]


def test_a_reader_of_one_level_is_named_where_there_are_two():
    with pytest.raises(ValueError, match="AutoregressivePrior reads one level of tokens, this tokenizer gives 2"):
        TWO_LEVELS.single_level("AutoregressivePrior")


def test_the_only_level_is_given():
    assert TokenGrid((Level(4, 8, 1, 512),)).single_level("a prior") == Level(4, 8, 1, 512)
