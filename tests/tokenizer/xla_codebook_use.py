"""Run by test_codebook_use_xla.py in processes of their own, on a mesh of CPU_NUM_DEVICES virtual devices.

    python -m tests.tokenizer.xla_codebook_use

Steps with the entropy regulariser, the second of which makes the codebook anew by k-means. Prints a JSON object.
"""
import functools
import json

import numpy as np
import torch_xla.debug.metrics as xla_metrics

from vqim.contracts.learning import Learner
from vqim.optim.adamw import AdamW
from vqim.optim.schedules import Constant
from vqim.runtime.settings import XlaSettings
from vqim.runtime.xla import XlaRuntime
from vqim.tokenizer.model import ImageTokenizer
from vqim.tokenizer.objective import TokenizerObjective
from vqim.tokenizer.quantizer.kmeans import KMeans
from vqim.tokenizer.quantizer.vector import VectorQuantizer
from vqim.tokenizer.terms import L2
from vqim.tokenizer.vit import ViTDecoder, ViTEncoder
from vqim.training.gradient_task import GradientTask
from vqim.training.programs import Programs
from vqim.training.state import start

NUM_STEPS = 3

if __name__ == "__main__":
    runtime = XlaRuntime(XlaSettings())
    sizes = {"num_layers": 1, "num_heads": 2, "hidden": 16}
    quantizer = VectorQuantizer(16, 16, 12, code_dim=4, entropy_weight=0.5,
                                kmeans=KMeans(every=2, until=2, batches=2, iterations=3))
    model = ImageTokenizer(ViTEncoder(16, 4, 16, **sizes), quantizer, ViTDecoder(16, 4, 16, **sizes), 16)
    learner = functools.partial(Learner, optimizer=AdamW(), learning_rate=Constant(3e-3))
    task = GradientTask(TokenizerObjective(model, learner, [L2()]))
    state, programs = start(task.init_spec(), 0, runtime), Programs(task, runtime)
    generator, losses = np.random.default_rng(0), []
    for step in range(NUM_STEPS):
        batch = runtime.put({"images": generator.integers(0, 256, (8, 16, 16, 3), np.uint8)})
        program = task.objective.program(step)
        losses.append(programs.means([(program, programs(program, state, batch))]))
        state.step += 1
    codebook = runtime.fetch([state.arrays["params/tokenizer/quantizer/codebook_VZ"]])[0]
    print(json.dumps({"losses": losses, "codebook": codebook.tolist(), "num_devices": runtime.num_batch_shards,
                      "fallbacks": [name for name in xla_metrics.counter_names() if name.startswith("aten::")]}))
