"""Networks from the checkpoints of another run: which arrays are read, what identifies them, what is refused."""
import numpy as np
import pytest
import torch
from torch import nn

from vqim.checkpoint.errors import NoCheckpointError
from vqim.checkpoint.manager import CheckpointManager
from vqim.contracts.context import Context
from vqim.frozen.from_run import FromRun
from vqim.nn.module import arrays_spec, parameter, spec, statistic
from vqim.runtime.torch import TorchKernels, TorchRuntime
from vqim.state.init import Constant, Normal
from vqim.state.leaf import prefixed
from vqim.tokenizer.model import ImageTokenizer
from vqim.tokenizer.quantizer.vector import VectorQuantizer
from vqim.tokenizer.vit import ViTDecoder, ViTEncoder
from vqim.training.state import TrainState, save, start


def make_tokenizer(vocabulary=32):
    """16x16 images to 4x4 tokens."""
    sizes = {"width": 16, "num_layers": 2, "num_heads": 4, "hidden": 24}
    return ImageTokenizer(ViTEncoder(16, 4, **sizes), VectorQuantizer(16, 16, vocabulary, code_dim=4),
                          ViTDecoder(16, 4, **sizes), image_size=16)


class Counting(nn.Module):
    """A network with a statistic: it multiplies by `gain` and subtracts `mean`."""

    def __init__(self):
        super().__init__()
        self.gain_D = parameter((3,), Normal(1.0), "features")
        self.bias_D = parameter((3,), Normal(1.0), "features")
        self.mean_D = statistic((3,), Constant(0.0), "features")

    def forward(self, x_D, context):
        return x_D * self.gain_D + self.bias_D - self.mean_D


def draw(module, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(leaf.shape, generator=generator) for name, leaf in arrays_spec(module).items()}


@pytest.fixture
def save_run(tmp_path):
    """`save_run(module, {section: arrays}, name='run', step=1)`: a run directory with a checkpoint of them."""
    def save_sections(module, sections, name="run", step=1):
        manager = CheckpointManager(tmp_path / name / "checkpoints")
        arrays = {prefix + array: value for prefix, values in sections.items() for array, value in values.items()}
        leaves = {array: leaf for prefix in sections for array, leaf in prefixed(prefix, arrays_spec(module)).items()
                  if array in arrays}
        save(TrainState(arrays, step, 0), leaves, manager, TorchRuntime(), data_position={}, config="", metrics={})
        manager.wait()
        return str(tmp_path / name)
    return save_sections


def fill(network):
    return start(network.init_spec(), 0, TorchRuntime()).arrays


def test_arrays_are_filled_with_the_runs_parameters(save_run):
    tokenizer = make_tokenizer()
    params = draw(tokenizer)
    filled = fill(FromRun(tokenizer, save_run(tokenizer, {"params/tokenizer/": params})))
    assert filled.keys() == params.keys()
    assert all(torch.equal(filled[name], params[name]) for name in params)


def test_a_slice_is_read_on_its_own(save_run):
    tokenizer = make_tokenizer()
    params = draw(tokenizer)
    leaf = FromRun(tokenizer, save_run(tokenizer, {"params/tokenizer/": params})).init_spec()["quantizer/codebook_VZ"]
    part = leaf.init("frozen/tokenizer/quantizer/codebook_VZ", leaf.shape, 0, (slice(3, 7), slice(1, 3)))
    np.testing.assert_array_equal(part, params["quantizer/codebook_VZ"][3:7, 1:3])


def test_the_newest_checkpoint_is_read(save_run):
    module = Counting()
    for step in (9, 10):
        run = save_run(module, {"params/tokenizer/": draw(module, step)}, step=step)
    assert torch.equal(fill(FromRun(module, run))["gain_D"], draw(module, 10)["gain_D"])


def test_moving_averages_are_read_before_parameters(save_run):
    module = Counting()
    params, averages = draw(module, 0), draw(module, 1)
    filled = fill(FromRun(module, save_run(module, {"params/tokenizer/": params, "ema/tokenizer/": averages})))
    assert all(torch.equal(filled[name], averages[name]) for name in spec(module))


def test_of_what_has_no_moving_average_the_parameters_are_read(save_run):
    module = Counting()
    params, averages = draw(module, 0), {"gain_D": draw(module, 1)["gain_D"]}
    filled = fill(FromRun(module, save_run(module, {"params/tokenizer/": params, "ema/tokenizer/": averages})))
    assert torch.equal(filled["gain_D"], averages["gain_D"]) and torch.equal(filled["bias_D"], params["bias_D"])


def test_statistics_are_read_too(save_run):
    module = Counting()
    params, averages = draw(module, 0), draw(module, 1)
    statistics = {"mean_D": params.pop("mean_D")}
    del averages["mean_D"]
    filled = fill(FromRun(module, save_run(module, {
        "params/tokenizer/": params, "ema/tokenizer/": averages, "statistics/tokenizer/": statistics})))
    assert filled.keys() == {"gain_D", "bias_D", "mean_D"}
    assert torch.equal(filled["mean_D"], statistics["mean_D"])
    assert torch.equal(filled["gain_D"], averages["gain_D"])


def test_a_run_that_has_the_network_frozen_gives_its_copy(save_run):
    module = Counting()
    copy = draw(module)
    filled = fill(FromRun(module, save_run(module, {"params/prior/": draw(module, 1), "frozen/tokenizer/": copy})))
    assert all(torch.equal(filled[name], copy[name]) for name in copy)


def test_what_a_run_has_trained_is_read_before_a_frozen_copy(save_run):
    module = Counting()
    params = draw(module)
    filled = fill(FromRun(module, save_run(
        module, {"frozen/tokenizer/": draw(module, 1), "params/tokenizer/": params})))
    assert all(torch.equal(filled[name], params[name]) for name in params)


def test_the_network_is_found_by_its_name_in_the_run(save_run):
    module = Counting()
    params = draw(module)
    run = save_run(module, {"params/prior/": params, "params/tokenizer/": draw(module, 1)})
    assert torch.equal(fill(FromRun(module, run, network="prior"))["gain_D"], params["gain_D"])


def test_from_run_computes_what_the_network_computes(save_run):
    module = Counting()
    arrays = draw(module)
    network = FromRun(module, save_run(module, {"params/tokenizer/": arrays}))
    x_D = torch.tensor([1.0, 2.0, 3.0])
    found = network(fill(network), x_D, context=Context(TorchKernels()))
    torch.testing.assert_close(found, x_D * arrays["gain_D"] + arrays["bias_D"] - arrays["mean_D"])


def test_nothing_is_read_before_it_is_needed(tmp_path):
    network = FromRun(make_tokenizer(), str(tmp_path / "nowhere"))
    leaf = network.init_spec()["quantizer/codebook_VZ"]
    with pytest.raises(NoCheckpointError, match="nowhere/checkpoints has no committed checkpoint"):
        leaf.init("w", leaf.shape, 0, (slice(0, 1), slice(0, 1)))


@pytest.mark.parametrize(("name", "changes_tokens"), [
    ("encoder/head/contract/bias_O", True), ("quantizer/codebook_VZ", True), ("quantizer/project_in/kernel_IO", True),
    ("quantizer/project_out/kernel_IO", False), ("decoder/head/contract/bias_O", False)])
def test_the_fingerprint_is_of_what_decides_about_tokens(save_run, name, changes_tokens):
    tokenizer = make_tokenizer()
    params = draw(tokenizer)
    changed = {**params, name: params[name] + 1}
    before, after = (
        FromRun(tokenizer, save_run(tokenizer, {"params/tokenizer/": values}, run)).fingerprint(
            tokenizer.deciding_arrays())
        for run, values in (("before", params), ("after", changed)))
    assert (before != after) is changes_tokens


def test_the_fingerprint_is_of_the_arrays_that_are_read(save_run):
    module = Counting()
    params, averages = draw(module), draw(module, 1)
    of_averages = FromRun(module, save_run(module, {"params/tokenizer/": averages}, "averages"))
    network = FromRun(module, save_run(module, {"params/tokenizer/": params, "ema/tokenizer/": averages}, "both"))
    assert network.fingerprint(["gain_D", "mean_D"]) == of_averages.fingerprint(["gain_D", "mean_D"])


def test_a_network_of_another_shape_is_refused(save_run):
    tokenizer = make_tokenizer(vocabulary=32)
    run = save_run(tokenizer, {"params/tokenizer/": draw(tokenizer)})
    leaf = FromRun(make_tokenizer(vocabulary=64), run).init_spec()["quantizer/codebook_VZ"]
    with pytest.raises(ValueError, match=r"codebook_VZ: expected float32\[64, 4\], the .* has float32\[32, 4\]"):
        leaf.init("w", leaf.shape, 0, (slice(0, 1), slice(0, 1)))


def test_a_network_that_the_run_does_not_have_is_refused_by_its_name(save_run):
    module = Counting()
    run = save_run(module, {"params/tokenizer/": draw(module)})
    with pytest.raises(ValueError, match=r"params/prior/gain_D: expected float32\[3\], not in the checkpoint"):
        fill(FromRun(module, run, network="prior"))
