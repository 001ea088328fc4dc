"""What a program does with a device's arrays and the host's scalars, found out where there is no such device.

Arrays on torch's `meta` device stand for a GPU's: operations check them as they check a GPU's, and a value cannot be
read from them.
"""
import traceback

import torch
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

TAKE_A_SCALAR = frozenset("add sub rsub mul div pow maximum minimum eq ne lt le gt ge".split())
"""Operations of two tensors, of which CUDA's kernels take one without dimensions from the host, by value."""


class OneDevice(TorchDispatchMode):
    """Notes, as (operation, line of vqim), what mixes the host's tensors with arrays, and copies that block the host.

    Attributes:
      mixed: operations with tensors from both, except those of `TAKE_A_SCALAR`.
      blocking: copies from the host to the device for which the host waits.
    """

    def __init__(self):
        super().__init__()
        self.mixed, self.blocking = set(), set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = func._schema.name.removeprefix("aten::")
        tensors = [x for x in pytree.tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        host = [x for x in tensors if x.device.type == "cpu"]
        takes = name.removesuffix("_") in TAKE_A_SCALAR and len(host) == 1 and host[0].ndim == 0
        if host and len(host) < len(tensors) and not takes:
            self.mixed.add((name, _line()))
        out = func(*args, **kwargs)
        if name == "_to_copy" and host and out.device.type == "meta" and not kwargs.get("non_blocking"):
            self.blocking.add((name, _line()))
        return out


def _line():
    """The innermost line of vqim that is running."""
    frames = [frame for frame in traceback.extract_stack() if "/vqim/" in frame.filename]
    return f"{frames[-1].filename.rpartition('/vqim/')[2]}:{frames[-1].lineno}" if frames else "outside of vqim"
