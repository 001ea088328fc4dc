"""How flash attention's kernels cut their work so that it fits a TPU's vector memory. Only arithmetic on sizes."""
import dataclasses
import math

LANES = 128
"""The number of values in a row of a vector register."""

VECTOR_MEMORY = 2**24
"""Bytes of vector memory in a v4 core, which has the least of all chips."""

NUM_LOGITS = 2**18
"""The largest number of queries in a block. Larger blocks use the matrix units no better and make longer programs."""


@dataclasses.dataclass(frozen=True)
class Blocks:
    """The part of the work that one run of a kernel does.

    Attributes:
      num_heads: the number of heads processed together.
      width: the number of features in all these heads.
      num_queries: the number of queries in a block; a block is multiplied with all keys that it sees.
    """

    num_heads: int
    width: int
    num_queries: int


def choose_blocks(num_heads: int, head_size: int, num_queries: int, num_keys: int, itemsize: int) -> Blocks:
    """The largest blocks that fit. Heads are grouped to fill registers: 2 heads of 64 features, 4 of 96, 8 of 80.

    Args:
      num_heads: the number of heads on one device.
      head_size: the number of features in a head.
      num_queries: the number of queries in a sequence.
      num_keys: the number of keys in a sequence.
      itemsize: bytes per element.

    Raises:
      ValueError: no blocks fit; the message says what has to change.
    """
    full = math.lcm(head_size, LANES) // head_size
    heads = num_heads if num_heads * head_size < LANES else full
    if num_heads % heads:
        raise ValueError(f"heads on each device in groups of {full}, got {num_heads} heads of {head_size}")
    for name, size in (("queries", num_queries), ("keys", num_keys)):
        if size % LANES:
            raise ValueError(f"a number of {name} that is a multiple of {LANES}, got {size}")
    blocks = [Blocks(heads, heads * head_size, size) for size in (512, 256, 128) if num_queries % size == 0]
    for block in blocks:
        if (block.num_queries * num_keys <= NUM_LOGITS or block is blocks[-1]) and (
                _vector_memory(block, num_keys, itemsize) <= VECTOR_MEMORY):
            return block
    raise ValueError(f"at most about {VECTOR_MEMORY // (block.width * itemsize * 8)} keys, got {num_keys}")


def _vector_memory(block: Blocks, num_keys: int, itemsize: int) -> int:
    """Bytes that the backward pass needs; its kernel is the larger one.

    These are keys and values; their gradients twice, since one is written while the next is computed; the gradients'
    sums in float32, unless they are float32; three arrays of queries, twice; about four arrays of logits. In float32,
    gradients are there only once; the rest is for the parts into which products at 'highest' split keys and values.
    """
    of_keys, of_queries = block.width * num_keys, block.width * block.num_queries
    sums = 2 * of_keys * 4 if itemsize < 4 else 0
    return (2 + 4) * of_keys * itemsize + sums + 6 * of_queries * itemsize + 4 * 4 * block.num_queries * num_keys
