"""Flash attention's kernels, interpreted on a CPU, against plain attention: jax runs what the TPU would."""
import numpy as np
import pytest
import torch

pytest.importorskip("torch_xla")
jax = pytest.importorskip("jax")

from jax.experimental.pallas import tpu as pallas_tpu  # noqa: E402

from vqim.runtime import flash, flash_kernels  # noqa: E402
from vqim.runtime.plain import plain_attention  # noqa: E402


class OneDevice:
    """A mesh of one device."""

    def size(self):
        return 1


@pytest.fixture
def interpreted(monkeypatch):
    """Kernels run on the host, one call of Pallas with exactly the arrays that the TPU would be given."""
    def run(kernel, settings, arrays):
        with pallas_tpu.force_tpu_interpret_mode():
            results = getattr(flash_kernels, kernel)(
                settings, *(jax.numpy.asarray(array.detach().numpy()) for array in arrays))
        return [torch.from_numpy(np.array(result)) for result in results]

    monkeypatch.setattr(flash, "run", run)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("queries, keys, heads, head_size", [
    (256, 256, 2, 16), (128, 256, 2, 64), (256, 128, 4, 96), (1024, 1024, 2, 64)])
def test_flash_attention_and_its_gradients_are_those_of_plain_attention(
    interpreted, causal, queries, keys, heads, head_size,
):
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, heads, length, head_size, requires_grad=True) for length in (queries, keys, keys))
    weights = torch.randn(1, heads, queries, head_size)
    results = {}
    for name, attention in {
        "plain": lambda: plain_attention(q, k, v, causal=causal),
        "flash": lambda: flash.flash_attention(q, k, v, causal=causal, mesh=OneDevice(), spec=(None,) * 3, num_parts=1),
    }.items():
        out = attention()
        results[name] = [out, *torch.autograd.grad((out * weights).sum(), (q, k, v))]
    for expected, found in zip(results["plain"], results["flash"], strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_without_gradients_flash_attention_is_the_same(interpreted):
    q, k, v = (torch.randn(1, 1, 128, 16) for _ in range(3))
    found = flash.flash_attention(q, k, v, causal=True, mesh=OneDevice(), spec=(None,) * 3, num_parts=1)
    torch.testing.assert_close(found, plain_attention(q, k, v, causal=True), rtol=1e-4, atol=1e-5)
