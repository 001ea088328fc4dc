"""On the torch runtime scalars stay on the host: steps use them so that a GPU takes them, and read nothing back."""
import numpy as np
import pytest
import torch

import vqim.registry.components  # noqa: F401  gin knows the components
from tests.gin.files import ROOT
from tests.support.one_device import OneDevice
from vqim.contracts.grid import Level, TokenGrid
from vqim.nn.module import arrays_spec
from vqim.prior.autoregressive import AutoregressivePrior
from vqim.prior.guidance import GuidanceSchedule
from vqim.prior.masked import MaskedPrior
from vqim.prior.masked_sampler import MaskedSampler
from vqim.prior.sampler import StepwiseSampler
from vqim.registry.config import load
from vqim.runtime.meta import MetaKernels
from vqim.runtime.torch import TorchRuntime
from vqim.training.programs import Programs
from vqim.training.state import TrainState


class MetaRuntime(TorchRuntime):
    """The torch runtime, as on a GPU: arrays on the device, scalars on the host."""

    def __init__(self):
        super().__init__()
        self.device, self.kernels = torch.device("meta"), MetaKernels()

    def arrays(self, spec):
        return {name: torch.empty(leaf.shape, dtype=leaf.dtype, device="meta") for name, leaf in spec.items()}


RUNTIME = MetaRuntime()

SHRUNK_ADVERSARY = ["gin/exp/vit_vqgan_ss_imagenet.gin", "gin/debug/shrink_vit.gin", "gin/debug/shrink_stage1.gin",
                    "gin/debug/shrink_stylegan2.gin"]
INT8 = ["training.Learner.optimizer = @optim.Adafactor()", "optim.Adafactor.first_moment = 'int8'",
        "optim.Adafactor.rounding = 'stochastic'"]


@pytest.mark.parametrize(("files", "bindings"), [
    (["gin/debug/tokenizer_tiny.gin"],
     ["training.Learner.ema_decay = 0.9", "training.Learner.max_gradient_norm = 1.0"]),
    (["gin/debug/prior_tiny.gin"], ["prior.AutoregressivePrior.dropout_rate = 0.1"]),
    (["gin/debug/masked_tiny.gin"], []),
    (["gin/debug/probe_tiny.gin"], []),
    (SHRUNK_ADVERSARY, ["tokenizer.Adversary.lecam_weight = 0.1"]),
], ids=["tokenizer", "prior", "masked", "probe", "adversary"])
def test_a_step_mixes_no_scalar_of_the_host_with_arrays_and_never_waits(files, bindings, monkeypatch):
    monkeypatch.chdir(ROOT)
    experiment = load(files, bindings, []).call("train", needs_data=False)
    task = experiment.task
    state = TrainState(RUNTIME.arrays(task.init_spec()), 0, 0)
    batch = RUNTIME.put(experiment.data.batch_like(4))
    programs = Programs(task, RUNTIME)
    for program in sorted(set(map(task.objective.program, range(20)))):
        with OneDevice() as seen:
            metrics = programs(program, state, batch)
        assert metrics.device.type == "meta"
        assert seen.mixed == seen.blocking == set()


def test_adafactor_in_int8_takes_scalars_of_the_host(monkeypatch):
    test_a_step_mixes_no_scalar_of_the_host_with_arrays_and_never_waits(
        ["gin/debug/classifier_tiny.gin"], INT8, monkeypatch)


@pytest.mark.parametrize(("make", "sampler"), [
    (AutoregressivePrior, StepwiseSampler(temperature=0.9, top_k=5, top_p=0.9, guidance=2.0,
                                          guidance_schedule=GuidanceSchedule("linear"))),
    (MaskedPrior, MaskedSampler(num_steps=2, guidance=2.0)),
])
def test_sampling_mixes_no_scalar_of_the_host_with_arrays_and_never_waits(make, sampler):
    prior = make(TokenGrid((Level(2, 2, 1, 16),)), 3, 16, 2, 2, 32, 0.0, class_dropout_rate=0.1)
    draw = sampler.bind(prior, RUNTIME, 4, torch.float32)
    arrays = RUNTIME.arrays(arrays_spec(prior))
    with OneDevice() as seen:
        tokens = draw(arrays, np.zeros(4, np.int32), np.arange(4), 0)
    assert tokens.device.type == "meta" and tokens.shape == (4, 4, 1)
    assert seen.mixed == seen.blocking == set()


def test_what_a_gpu_would_refuse_is_noticed():
    array, scalar = torch.empty(3, device="meta"), torch.tensor(0.5)
    with OneDevice() as seen:
        assert (array * scalar).shape == (3,)
    assert seen.mixed == set()
    with OneDevice() as seen, pytest.raises(RuntimeError):
        torch.stack([array[0], scalar])
    assert {operation for operation, _ in seen.mixed} == {"stack"}
