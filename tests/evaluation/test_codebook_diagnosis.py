"""Distances of latents and codes are those of NumPy, and each cause of unused codes is told by its words."""
import numpy as np
import pytest
import torch

from vqim.contracts.evaluation import Lookup
from vqim.evaluation.codebook_diagnosis import Health, Lookups, observe_lookup
from vqim.nn.module import apply
from vqim.runtime.torch import TorchKernels
from vqim.tokenizer.quantizer.multichannel import MultichannelQuantizer
from vqim.tokenizer.quantizer.residual import ResidualQuantizer
from vqim.tokenizer.quantizer.vector import VectorQuantizer
from vqim.training.summaries import Summaries

GENERATOR = np.random.default_rng(0)
LATENTS_BPZ = GENERATOR.standard_normal((6, 40, 3)).astype(np.float32)
CODES_VZ = GENERATOR.standard_normal((9, 3)).astype(np.float32)
CODES_VZ[5:] += 20


def distances():
    return np.linalg.norm(LATENTS_BPZ[:, :, None].astype(np.float64) - CODES_VZ, axis=-1)


def health(batch_size, valid_B):
    lookups = Lookups(len(CODES_VZ))
    for start in range(0, len(LATENTS_BPZ), batch_size):
        part = slice(start, start + batch_size)
        observed = observe_lookup(Lookup(torch.from_numpy(LATENTS_BPZ[part]), torch.from_numpy(CODES_VZ)),
                                  TorchKernels())
        lookups.add({name: value.numpy() for name, value in observed.items()}, valid_B[part])
    counts_V = np.bincount(distances()[valid_B].argmin(-1).ravel(), minlength=len(CODES_VZ))
    return lookups.result(counts_V)


@pytest.mark.parametrize("batch_size", [1, 4, 6])
def test_distances_are_those_of_numpy_for_any_batches_without_invalid_images(batch_size):
    valid_B = np.array([True, True, False, True, True, True])
    found = health(batch_size, valid_B)
    distance_BPV, z_NZ = distances()[valid_B], LATENTS_BPZ[valid_B].reshape(-1, 3).astype(np.float64)
    assert found.latent_distance == pytest.approx(np.sqrt(np.square(distance_BPV.min(-1)).mean()), rel=1e-5)
    assert found.latent_spread == pytest.approx(np.sqrt(np.square(z_NZ - z_NZ.mean(0)).sum(-1).mean()), rel=1e-5)
    assert found.unused_distance == pytest.approx(np.median(distance_BPV.min((0, 1))[5:]), rel=1e-5)


def test_codes_far_from_all_latents_are_told_with_their_share_and_entropy():
    words = health(6, np.ones(6, bool)).diagnosis(np.repeat([0, 1], [5, 4]))
    assert words.startswith("4 of 9 codes are unused, entropy 2.")
    assert "outside of the latents" in words and "restart_below = 0.1" in words


@pytest.mark.parametrize(("latent_distance", "unused_distance", "cause"), [
    (0.3, 0.5, "another code is nearer"), (0.99, 0.5, "few codes serve all"), (0.3, 1.5, "outside of the latents")])
def test_the_cause_follows_from_the_distances(latent_distance, unused_distance, cause):
    counts_V = np.array([500, 500, 0, 0])
    assert cause in Health(counts_V, latent_distance, 1.0, unused_distance).diagnosis(np.array([0, 0, 1, 1]))


@pytest.mark.parametrize("counts", [[9, 9, 9, 9], [900, 900, 900, 0], [9, 9, 0, 0]])
def test_no_words_where_few_codes_are_unused_or_the_set_is_too_small_to_tell(counts):
    unused = 0.5 if 0 in counts else None
    assert Health(np.array(counts), 0.3, 1.0, unused).diagnosis(np.array(counts) == 0) is None


def test_a_restored_tally_has_the_same_result():
    lookups, restored = Lookups(9), Lookups(9)
    observed = observe_lookup(Lookup(torch.from_numpy(LATENTS_BPZ), torch.from_numpy(CODES_VZ)), TorchKernels())
    lookups.add({name: value.numpy() for name, value in observed.items()}, np.ones(6, bool))
    restored.restore(lookups.state())
    counts_V = np.array([1, 1, 1, 1, 1, 0, 0, 0, 0])
    assert restored.result(counts_V).numbers() == lookups.result(counts_V).numbers()


@pytest.mark.parametrize("quantizer", [
    VectorQuantizer(8, 8, 20, code_dim=4), MultichannelQuantizer(8, 8, 20, code_dim=8, channels=2),
    ResidualQuantizer(8, 8, 20, code_dim=4, depth=3)], ids=lambda quantizer: type(quantizer).__name__)
def test_codes_nearest_to_what_was_looked_up_are_the_quantizers(quantizer, draw_params, context):
    quantized = apply(quantizer.forward, draw_params(quantizer), torch.randn(2, 3, 3, 8), context)
    (lookup,) = quantized.lookups
    distance_BPV = torch.cdist(lookup.latents_BPZ.double(), lookup.codebook_VZ.double())
    assert (distance_BPV.argmin(-1) == quantized.indices[0].flatten(1)).all()


def test_a_run_warns_of_a_diagnosis(tmp_path, caplog):
    summaries = Summaries(tmp_path, first_step=0)
    with caplog.at_level("WARNING"):
        summaries.write(3, {"codebook/diagnosis": "4 of 9 codes are unused"})
    summaries.close()
    assert "step 3  codebook/diagnosis: 4 of 9 codes are unused" in caplog.text
