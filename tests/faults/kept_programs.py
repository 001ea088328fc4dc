"""`launch.train` with XLA's compiled programs kept in a folder, so that a process that starts again need not compile.

    KEPT_PROGRAMS=folder PJRT_DEVICE=CPU CPU_NUM_DEVICES=8 python -m tests.faults.kept_programs --runtime=xla ...
"""
import os
import runpy

FOLDER = "KEPT_PROGRAMS"
"""The environment variable that names the folder."""


def main() -> None:
    """Trains as the command line says."""
    import torch_xla.runtime
    torch_xla.runtime.use_spmd()
    torch_xla.runtime.initialize_cache(os.environ[FOLDER], readonly=False)
    runpy.run_module("launch.train", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
