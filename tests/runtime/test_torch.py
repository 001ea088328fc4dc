"""What the torch runtime does in its own way, against plain formulas."""
import numpy as np
import pytest
import torch
from scipy.special import log_softmax

from vqim.runtime.plain import sums_by_code
from vqim.runtime.settings import TorchSettings
from vqim.runtime.torch import TorchKernels, TorchRuntime, has_bfloat16_products

KERNELS = TorchKernels()
KEY = torch.tensor(3, dtype=torch.int32)


@pytest.mark.parametrize("rate", [0.001, 0.1, 0.5, 0.9])
def test_each_of_the_four_entries_of_a_random_number_is_dropped_at_the_rate(rate):
    count = 200_000
    kept_N4 = KERNELS.keep_mask(KEY, rate, (count, 4), torch.device("cpu"))
    deviation = (rate * (1 - rate) / count) ** 0.5
    np.testing.assert_allclose(1 - kept_N4.float().mean(0), rate, atol=5 * deviation + 2**-17)
    # They are independent of each other.
    together_44 = np.corrcoef(kept_N4.float().T)
    assert np.abs(together_44 - np.eye(4)).max() < 5 / count**0.5


@pytest.mark.parametrize("shape", [(), (1,), (3,), (2, 7), (5, 1, 3)])
def test_masks_have_any_number_of_entries(shape):
    kept = KERNELS.keep_mask(KEY, 0.5, shape, torch.device("cpu"))
    assert kept.shape == shape and kept.dtype == torch.bool


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_cross_entropy_is_minus_the_log_of_the_softmax(dtype):
    logits_BNKV = (5 * torch.randn(2, 3, 4, 11)).to(dtype)
    codes_BNK = torch.randint(0, 11, (2, 3, 4))
    want_BNK = -np.take_along_axis(
        log_softmax(logits_BNKV.double().numpy(), -1), codes_BNK.numpy()[..., None], -1)[..., 0]
    found_BNK = KERNELS.cross_entropy(logits_BNKV, codes_BNK)
    assert found_BNK.dtype == torch.float32
    np.testing.assert_allclose(found_BNK, want_BNK, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("sums", [KERNELS.sums_by_code, sums_by_code])
def test_sums_by_code_are_those_of_a_loop(sums):
    x_PZ, codes_P = torch.randn(50, 3), torch.randint(0, 7, (50,))
    counts_V, sums_VZ = sums(x_PZ, codes_P, 9)
    assert counts_V.tolist() == [(codes_P == code).sum() for code in range(9)]
    for code in range(9):
        np.testing.assert_allclose(sums_VZ[code], x_PZ[codes_P == code].sum(0), rtol=1e-5, atol=1e-6)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU decides by itself")
@pytest.mark.parametrize("flags, is_there", [
    ("flags\t: fpu avx2 avx512f avx512_bf16 sse", True),
    ("flags\t: fpu avx512f amx_bf16 amx_tile", True),
    ("flags\t: fpu avx2 avx512f avx512_vnni", False),
])
def test_products_in_bfloat16_are_known_by_the_processors_flags(tmp_path, flags, is_there):
    (tmp_path / "cpuinfo").write_text(f"processor\t: 0\n{flags}\nbugs\t: none\n")
    assert has_bfloat16_products(tmp_path / "cpuinfo") is is_there
    assert not has_bfloat16_products(tmp_path / "not_linux")


@pytest.mark.parametrize("device, message", [
    ("gpu", "device must be cpu, cuda or cuda:<number>, got 'gpu'"),
    ("mps", "device must be cpu, cuda or cuda:<number>, got 'mps'"),
    ("cuda:99", r"device must be one that is here, got 'cuda:99': torch finds (no|\d+) CUDA device"),
])
def test_a_device_that_is_not_there_is_refused(device, message):
    with pytest.raises(ValueError, match=message):
        TorchRuntime(TorchSettings(device=device))
