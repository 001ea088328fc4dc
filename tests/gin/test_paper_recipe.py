"""ViT-VQGAN's stage 1 with the paper's own losses and weights, small: what it reaches, not merely that a loss falls."""
import json

import gin
import numpy as np

import vqim.registry.components  # noqa: F401  gin knows the components from here on
from vqim.evaluation.distances import mean_image_psnr
from vqim.registry.config import load
from vqim.runtime.torch import TorchRuntime
from vqim.training.loop import train


def images_of(data, split):
    return np.concatenate([batch["images"][batch["valid"]] for batch in data.evaluation(64, split=split)])


def test_the_papers_weights_reconstruct_and_keep_codes_in_use(tmp_path):
    gin.clear_config()
    config = load(["gin/exp/emoji_ablations/paper.gin"], [
        "NUM_STEPS = 100", "optim.WarmupCosine.warmup_steps = 10",
        "train.batch_size = 16", "IMAGE_SIZE = 16", "DISCRIMINATOR_CHANNELS = 16",
        "evaluation.Reconstructions.every = 0",
        "evaluation.Reconstructions.metrics = [@evaluation.Distances(), @evaluation.CodebookUse()]"], [])
    experiment = config.call("train")
    train(experiment, workdir=tmp_path, runtime=TorchRuntime(), config=config.text())
    gin.clear_config()
    # The training images' mean as every reconstruction: what a collapsed tokenizer has.
    collapsed = mean_image_psnr(*(images_of(experiment.data, split) for split in ("train", "validation")))
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    measured = next(row for row in rows if "evaluation/psnr" in row)
    assert measured["evaluation/psnr"] > collapsed + 3
    assert measured["codebook/usage"] > 0.05
