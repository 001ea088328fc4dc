"""LPIPS as its paper has it, on torchvision's own modules: what tests compare with."""
import numpy as np
import torch


def weights(spec):
    """The constants of a network, as tensors."""
    return {name: torch.from_numpy(leaf.init(name, leaf.shape, 0, tuple(slice(0, n) for n in leaf.shape)))
            for name, leaf in spec.items()}


def published_lpips(trunk, rectifiers, params, a_BCHW, b_BCHW):
    """The paper's equation 1 in float64 NumPy: distances_B.

    Args:
      trunk: `features` of a torchvision model; its convolutions are given the weights of `params`.
      rectifiers: the layers of it whose results are compared, in order.
      params: named as in the spec of LPIPS on this network.
      a_BCHW: images in [0, 1].
      b_BCHW: as many.
    """
    names = sorted(name for name in params if name.startswith("conv") and name.endswith("kernel_OIHW"))
    convolutions = [layer for layer in trunk if isinstance(layer, torch.nn.Conv2d)]
    for layer, name in zip(convolutions, names, strict=True):
        layer.weight.data = params[name]
        layer.bias.data = params[name.replace("kernel_OIHW", "bias_O")]

    def unit_features(x):
        shift, scale = (torch.tensor(v)[:, None, None] for v in ([-0.030, -0.088, -0.188], [0.458, 0.448, 0.450]))
        x, maps = (2 * x - 1 - shift) / scale, []
        for i, layer in enumerate(trunk[:rectifiers[-1] + 1]):
            x = layer(x)
            if i in rectifiers:
                f = x.detach().double().numpy().copy()
                maps.append(f / np.linalg.norm(f, axis=1, keepdims=True).clip(1e-10))
        return maps

    heads = [params[f"head{stage}/weight_C"].numpy() for stage in range(1, 6)]
    return sum(np.einsum("bchw,c->bhw", (a - b) ** 2, head).mean((1, 2))
               for a, b, head in zip(unit_features(a_BCHW), unit_features(b_BCHW), heads, strict=True))
