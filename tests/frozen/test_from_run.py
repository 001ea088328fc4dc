"""Networks from the checkpoints of another run: their values, what identifies their tokens, what is refused."""
import numpy as np
import pytest
import torch

from vqim.checkpoint.errors import NoCheckpointError
from vqim.runtime.torch import TorchRuntime
from vqim.tokenizer.pretrained import Pretrained
from vqim.training.state import start


def test_arrays_are_filled_with_the_runs_parameters(make_tokenizer, draw_params, save_run):
    tokenizer = make_tokenizer()
    params = draw_params(tokenizer)
    pretrained = Pretrained(tokenizer, save_run(tokenizer, params))
    filled = start(pretrained.init_spec(), 0, TorchRuntime()).arrays
    assert filled.keys() == params.keys()
    assert all(torch.equal(filled[name], params[name]) for name in params)


def test_a_slice_is_read_on_its_own(make_tokenizer, draw_params, save_run):
    tokenizer = make_tokenizer()
    params = draw_params(tokenizer)
    leaf = Pretrained(tokenizer, save_run(tokenizer, params)).init_spec()["quantizer/codebook_VZ"]
    part = leaf.init("frozen/tokenizer/quantizer/codebook_VZ", leaf.shape, 0, (slice(3, 7), slice(1, 3)))
    np.testing.assert_array_equal(part, params["quantizer/codebook_VZ"][3:7, 1:3])


def test_the_newest_checkpoint_is_read(make_tokenizer, draw_params, save_run):
    tokenizer = make_tokenizer()
    old, new = draw_params(tokenizer, 0), draw_params(tokenizer, 1)
    run = save_run(tokenizer, old, step=9)
    save_run(tokenizer, new, step=10)
    filled = start(Pretrained(tokenizer, run).init_spec(), 0, TorchRuntime()).arrays
    assert torch.equal(filled["encoder/embed/kernel_IO"], new["encoder/embed/kernel_IO"])


def test_of_a_run_with_averages_these_are_read(make_tokenizer, draw_params, save_run):
    tokenizer = make_tokenizer()
    averages = draw_params(tokenizer, 1)
    run = save_run(tokenizer, draw_params(tokenizer, 0), averages=averages)
    filled = start(Pretrained(tokenizer, run).init_spec(), 0, TorchRuntime()).arrays
    assert all(torch.equal(filled[name], array) for name, array in averages.items())


def test_nothing_is_read_before_it_is_needed(make_tokenizer, tmp_path):
    pretrained = Pretrained(make_tokenizer(), str(tmp_path / "nowhere"))
    leaf = pretrained.init_spec()["quantizer/codebook_VZ"]
    with pytest.raises(NoCheckpointError, match="nowhere/checkpoints has no committed checkpoint"):
        leaf.init("w", leaf.shape, 0, (slice(0, 1), slice(0, 1)))


@pytest.mark.parametrize(("name", "changes_tokens"), [
    ("encoder/head/contract/bias_O", True), ("quantizer/codebook_VZ", True), ("decoder/head/contract/bias_O", False)])
def test_the_fingerprint_is_of_what_decides_about_tokens(
        make_tokenizer, draw_params, save_run, name, changes_tokens):
    tokenizer = make_tokenizer()
    params = draw_params(tokenizer)
    changed = {**params, name: params[name] + 1}
    before, after = (Pretrained(tokenizer, save_run(tokenizer, values, run)).fingerprint()
                     for run, values in (("before", params), ("after", changed)))
    assert (before != after) is changes_tokens


def test_a_network_of_another_shape_is_refused(make_tokenizer, draw_params, save_run):
    tokenizer = make_tokenizer(vocabulary=32)
    run = save_run(tokenizer, draw_params(tokenizer))
    leaf = Pretrained(make_tokenizer(vocabulary=64), run).init_spec()["quantizer/codebook_VZ"]
    with pytest.raises(ValueError, match=r"codebook_VZ: expected float32\[64, 4\], the .* has float32\[32, 4\]"):
        leaf.init("w", leaf.shape, 0, (slice(0, 1), slice(0, 1)))


def test_a_prefix_without_its_slash_is_refused(make_tokenizer):
    with pytest.raises(ValueError, match="prefix must end with '/', .*; got 'params/tokenizer'"):
        Pretrained(make_tokenizer(), "runs/tokenizer", "params/tokenizer")
