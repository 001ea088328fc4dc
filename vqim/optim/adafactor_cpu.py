"""Adafactor's step on a CPU as a C kernel: a few passes over each layer, instead of about thirty in eager torch."""
import ctypes
import functools
import math
import os
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path

import torch
from absl import logging
from torch import Tensor

_SOURCE = Path(__file__).with_name("adafactor_cpu.c")
_FLAGS = ("-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-shared", "-fPIC")
_POINTER, _SIZE, _INT, _FLOAT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int, ctypes.c_float


def is_available() -> bool:
    """Whether there is a C compiler and the kernel could be built; logs it once if not."""
    return _library() is not None


def serves(param: Tensor, grad: Tensor) -> bool:
    """Whether the kernel can update these arrays: on a CPU, float32, contiguous."""
    return all(x.device.type == "cpu" and x.dtype == torch.float32 and x.is_contiguous() for x in (param, grad))


def step(
    param_LRC: Tensor, grad_LRC: Tensor, moment: dict[str, Tensor], v_row_LR: Tensor, v_col_LC: Tensor, *,
    scale_per_row: bool, scale_by_parameter: bool, beta1: float, new_weight: float, learning_rate: float,
    weight_decay: float, clip_threshold: float | None,
) -> Tensor:
    """One update, in place, of a stack of matrices whose second moment is factored over both dimensions.

    Args:
      param_LRC: the parameter, float32 and contiguous; without the first dimension if there is no stack.
      grad_LRC: its gradient, likewise.
      moment: the first moment: 'm_int8' and 'm_scale', or 'm' in float32, or nothing.
      v_row_LR: the row factor of the second moment.
      v_col_LC: its column factor.
      scale_per_row: whether an int8 scale belongs to a row; else to a column.
      Others: see `vqim.optim.adafactor.Adafactor`.

    Returns:
      The l2 norm of the decrease of all parameters, a float32 scalar.
    """
    library = _library()
    assert library is not None, "is_available() has to be asked first"
    rows, columns = param_LRC.shape[-2:]
    layers = param_LRC.numel() // (rows * columns)
    squared_norms = torch.empty(layers, dtype=torch.float64)
    arrays = [param_LRC, grad_LRC, moment.get("m_int8"), moment.get("m_scale"), moment.get("m"),
              v_row_LR, v_col_LC, squared_norms]
    failed = library.adafactor_step(
        layers, rows, columns, scale_per_row, scale_by_parameter, torch.get_num_threads(),
        *(None if array is None else array.data_ptr() for array in arrays),
        beta1, new_weight, learning_rate, learning_rate * weight_decay,
        math.inf if clip_threshold is None else clip_threshold)
    if failed:
        raise MemoryError(
            f"Adafactor's step needs memory for a few rows of an array of shape {list(param_LRC.shape)}, there is none "
            "left: train with a smaller model or batch, or with fewer threads (OMP_NUM_THREADS)")
    return squared_norms.sum().sqrt().float()


@functools.cache
def _library() -> ctypes.CDLL | None:
    """The kernel, built in each process (one second), so that no machine uses a copy built for another one."""
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if not compiler:
        logging.warning("There is no C compiler (cc, gcc or clang): Adafactor's step on the CPU takes several times "
                        "as long as it could. Install one, or set CC.")
        return None
    try:
        return _built(shlex.split(compiler))
    except (OSError, ValueError, subprocess.CalledProcessError) as error:
        said = error.stderr.strip()[-2000:] if isinstance(error, subprocess.CalledProcessError) else error
        logging.warning("Adafactor's kernel for the CPU could not be built by %s, and its step takes several times as "
                        "long as it could: %s", compiler, said)
        return None


def _built(compiler: list[str]) -> ctypes.CDLL:
    """The kernel, compiled and loaded; CalledProcessError or OSError where that fails."""
    with tempfile.TemporaryDirectory(prefix="vqim-") as folder:
        built = f"{folder}/adafactor_cpu.so"
        command = [*compiler, *_FLAGS, str(_SOURCE), "-o", built, "-lm"]
        # Clang may lack OpenMP; the kernel then runs on one thread.
        if subprocess.run([*command, "-fopenmp"], capture_output=True).returncode:
            subprocess.run(command, capture_output=True, text=True, check=True)
        library = ctypes.CDLL(built)
    library.adafactor_step.argtypes = [*[_SIZE] * 3, *[_INT] * 3, *[_POINTER] * 8, *[_FLOAT] * 5]
    return library
