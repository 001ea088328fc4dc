"""Makes the runtime for a name and a configuration."""
import glob
from importlib.util import find_spec

from vqim.contracts.runtime import Runtime
from vqim.registry.config import Config, ConfigError


def make_runtime(config: Config, name: str) -> Runtime:
    """Makes a runtime by its name: 'torch', 'xla', or 'auto' for a TPU if there is one, else torch.

    Raises:
      ConfigError: the name is another one, or 'xla' where torch_xla is not installed, or a setting does not fit the
        devices.
    """
    if name not in ("auto", "torch", "xla"):
        raise ConfigError(f"runtime must be auto, torch or xla, got {name!r}; torch computes on a CPU or a CUDA GPU")
    if name == "auto":
        name = "xla" if _has_tpu() else "torch"
    try:
        if name == "torch":
            from vqim.runtime.torch import TorchRuntime
            return TorchRuntime(config.call("runtime.Torch"))
        try:
            from vqim.runtime.xla import XlaRuntime
        except ImportError as error:
            raise ConfigError(f"--runtime=xla needs torch_xla, which is there for Linux alone: pip install "
                              f"'vqim[xla]' ({error})") from error
        return XlaRuntime(config.call("runtime.Xla"))
    except ValueError as error:
        raise ConfigError(str(error)) from error


def _has_tpu() -> bool:
    """Whether this machine has TPU chips, found without loading torch_xla."""
    return bool(glob.glob("/dev/accel*") or glob.glob("/dev/vfio/[0-9]*")) and find_spec("torch_xla") is not None
