"""Several processes on the torch runtime, as one program over several hosts would be: PJRT has no such CPU devices.

Each loads its share of a batch and holds its part of every array; what a step sees is the whole of both.
"""
import base64
import concurrent.futures
import io
import threading

import numpy as np

from vqim.contracts.runtime import Shards
from vqim.runtime.hosts import HostNetwork
from vqim.runtime.torch import TorchRuntime

_COMPUTING = threading.Lock()  # torch.func.functional_call, on a module of several threads, is for one at a time


class OneOfSeveral(TorchRuntime):
    """One of them. Every process computes everything; batches go round over the network."""

    def __init__(self, network):
        super().__init__()
        self.hosts = network
        self.process_index, self.process_count = network.process_index, network.process_count
        self.num_batch_shards = network.process_count
        self.loaded = []
        self._number = 0

    def put(self, batch):
        """The whole batch, of everyone's parts; `loaded` keeps this process's."""
        self.loaded.append(batch)
        self._number += 1
        self.hosts.post(f"batch {self._number}/{self.process_index}", _to_text(batch))
        parts = [_to_arrays(self.hosts.get(f"batch {self._number}/{i}")) for i in range(self.process_count)]
        return super().put({name: np.concatenate([part[name] for part in parts]) for name in batch})

    def compile(self, function):
        """The function itself."""
        def run(*args):
            with _COMPUTING:
                return function(*args)

        return run

    def shards(self, tensor):
        """This process's rows of the array, where they can be shared out; process 0 has the others."""
        whole = super().shards(tensor)
        (_, values), = whole.parts
        if not values.ndim or len(values) % self.process_count:
            return whole if self.process_index == 0 else Shards(whole.shape, whole.dtype, [])
        count = len(values) // self.process_count
        rows = slice(self.process_index * count, (self.process_index + 1) * count)
        return Shards(whole.shape, whole.dtype, [((rows, *map(slice, values.shape[1:])), values[rows])])


def together(count, function):
    """Calls `function(runtime)` in threads, each with a runtime of its own; returns the runtimes and results."""
    first = HostNetwork("localhost", 0, 0, count, timeout_seconds=60)
    networks = [first, *(HostNetwork("localhost", first.port, i, count, timeout_seconds=60) for i in range(1, count))]
    runtimes = [OneOfSeveral(network) for network in networks]
    with concurrent.futures.ThreadPoolExecutor(count) as pool:
        return runtimes, list(pool.map(function, runtimes))


def _to_text(arrays):
    file = io.BytesIO()
    np.savez(file, **arrays)
    return base64.b64encode(file.getvalue()).decode()


def _to_arrays(text):
    return dict(np.load(io.BytesIO(base64.b64decode(text))))
