"""Run by test_adversary_xla.py in a process of its own: an adversarial run on XLA's devices, beside the torch runtime.

    python -m tests.tokenizer.xla_adversary

Prints a JSON object: metrics of each step on both runtimes, and what torch_xla counted.
"""
import functools
import json

import numpy as np
import torch_xla.debug.metrics as xla_metrics

from tests.tokenizer.small_discriminator import SmallDiscriminator
from vqim.contracts.learning import Learner
from vqim.optim.adamw import AdamW
from vqim.optim.schedules import Constant
from vqim.runtime.arrays import to_numpy
from vqim.runtime.settings import XlaSettings
from vqim.runtime.torch import TorchRuntime
from vqim.runtime.xla import XlaRuntime
from vqim.tokenizer.discriminator.adversary import Adversary
from vqim.tokenizer.model import ImageTokenizer
from vqim.tokenizer.objective import TokenizerObjective
from vqim.tokenizer.quantizer.vector import VectorQuantizer
from vqim.tokenizer.terms import L2, LogitLaplace
from vqim.tokenizer.vit import ViTDecoder, ViTEncoder
from vqim.training.gradient_task import GradientTask
from vqim.training.programs import Programs
from vqim.training.state import start

NUM_STEPS, START, EVERY, BATCH_SIZE = 9, 2, 3, 16


def make_learner() -> functools.partial[Learner]:
    """eps as in discriminator/conftest.py."""
    return functools.partial(Learner, optimizer=AdamW(eps=1e-2), learning_rate=Constant(1e-3))


def make_task() -> GradientTask:
    """Every kind of term, in two micro-batches."""
    sizes = {"width": 16, "num_layers": 1, "num_heads": 2, "hidden": 16}
    model = ImageTokenizer(
        ViTEncoder(16, 4, **sizes), VectorQuantizer(16, 16, 32, code_dim=4), ViTDecoder(16, 4, **sizes), 16)
    adversary = Adversary(
        SmallDiscriminator(patches=True), make_learner(), start_step=START, r1_every=EVERY, lecam_weight=0.1,
        adaptive_layer="decoder/head/contract/kernel_IO")
    objective = TokenizerObjective(model, make_learner(), [L2(), LogitLaplace()], adversary=adversary)
    return GradientTask(objective, num_micro_batches=2)


def counters() -> tuple[int, int]:
    """Compilations, and arrays that compiled programs update in place."""
    aliases = xla_metrics.metric_data("InputOutputAliasCount")
    return xla_metrics.counter_value("UncachedCompile") or 0, int(aliases[1]) if aliases else 0


def run(runtime: TorchRuntime | XlaRuntime) -> dict:
    """What each step was and came to, and the discriminator's state at its start."""
    task = make_task()
    state = start(task.init_spec(), 0, runtime)
    programs, rows, at_start = Programs(task, runtime), [], {}
    rng = np.random.default_rng(0)
    for state.step in range(NUM_STEPS):
        if state.step == START:
            at_start = {name: to_numpy(array).tolist() for name, array in state.arrays.items()
                        if "/discriminator/" in name}
        compiled, updated = counters()
        batch = runtime.put({"images": rng.integers(0, 256, (BATCH_SIZE, 16, 16, 3), np.uint8)})
        program = task.objective.program(state.step)
        metrics = programs(program, state, batch)
        now_compiled, now_updated = counters()
        rows.append({"program": program, "compiled": now_compiled - compiled, "updated": now_updated - updated,
                     "metrics": programs.means([(program, metrics)])})
    changes = sum(not name.startswith("frozen/") for name in state.arrays)
    return {"steps": rows, "at_start": at_start, "state": changes,
            "discriminator": sum("/discriminator/" in name for name in state.arrays)}


if __name__ == "__main__":
    xla = run(XlaRuntime(XlaSettings()))
    fallbacks = [name for name in xla_metrics.counter_names() if name.startswith("aten::")]
    print(json.dumps({"xla": xla, "torch": run(TorchRuntime()), "fallbacks": fallbacks}))
