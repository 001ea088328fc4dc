"""How flash attention is cut into blocks: registers are full, and vector memory is enough."""
import pytest

from vqim.runtime.flash_blocks import choose_blocks


@pytest.mark.parametrize("num_heads, head_size, expected_heads", [
    (32, 64, 2), (16, 96, 4), (16, 80, 8), (4, 128, 1), (8, 256, 1)])
def test_heads_at_a_time_fill_whole_registers(num_heads, head_size, expected_heads):
    blocks = choose_blocks(num_heads, head_size, 1024, 1024, 2)
    assert (blocks.num_heads, blocks.width % 128) == (expected_heads, 0)


def test_heads_that_fill_less_than_a_register_are_taken_together():
    assert choose_blocks(2, 16, 256, 256, 4).width == 32


@pytest.mark.parametrize("arguments, message", [
    ((3, 64, 256, 256, 2), "groups of 2, got 3"),
    ((2, 64, 200, 256, 2), "number of queries that is a multiple of 128, got 200"),
    ((2, 64, 256, 200, 2), "number of keys that is a multiple of 128, got 200"),
    ((16, 80, 1024, 1024, 4), "keys, got 1024"),
])
def test_what_does_not_fit_is_refused_with_what_would(arguments, message):
    with pytest.raises(ValueError, match=message):
        choose_blocks(*arguments)


def test_a_block_needs_less_memory_where_heads_need_more():
    # 16.0 MiB by the compiler's own count are all that there are; with 256 queries it needs 17.5 (v4, libtpu 0.0.23).
    assert choose_blocks(16, 80, 1024, 1024, 2).num_queries == 128
    assert choose_blocks(32, 64, 1024, 1024, 2).num_queries == 256
