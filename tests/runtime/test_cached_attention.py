"""One position's attention to a cache: XLA's one product for all heads gives what a product for each head gives."""
import pytest
import torch
from einops import rearrange

from vqim.runtime.torch import TorchKernels

XlaKernels = pytest.importorskip("vqim.runtime.xla_kernels", exc_type=ImportError).XlaKernels


@pytest.mark.parametrize("num_heads", [1, 2, 6])
@pytest.mark.parametrize("position", [0, 3, 7])
def test_one_product_for_all_heads_gives_what_a_product_for_each_head_gives(num_heads, position):
    generator = torch.Generator().manual_seed(position)
    q, k, v = (torch.randn(3, 1, 12, generator=generator) for _ in range(3))
    caches_BSD = [torch.randn(3, 8, 12, generator=generator) for _ in range(2)]
    for cache_BSD in caches_BSD:
        cache_BSD[:, position:] = 1e4  # must not be read
    by_head, _ = TorchKernels().cached_attention(
        q, k, v, *(rearrange(x, "b s (n h) -> b n s h", n=num_heads) for x in caches_BSD), torch.tensor(position),
        num_heads)
    of_all, _ = XlaKernels.cached_attention(None, q, k, v, *caches_BSD, torch.tensor(position), num_heads)
    torch.testing.assert_close(of_all, by_head)
