"""Measures a batch that has shapes and no values, to find out before any work what a pass measures, or that it cannot.

    B images in a batch
"""
import numpy as np
import torch

from vqim.contracts.context import Context, Kernels
from vqim.contracts.data import Dataset
from vqim.contracts.task import Task
from vqim.evaluation.passes import Pass, check_needs
from vqim.state.leaf import Spec, State


def rehearse(owner: Pass, task: Task, data: Dataset, kernels: Kernels) -> dict[str, bool] | None:
    """Measures a batch that has a shape and no values.

    Returns:
      The names of the results, and whether they are numbers, as metrics tell them of a batch of zeros; None if
      one of them does not.

    Raises:
      Exception: what a metric, or the objective, raises for such a batch.
    """
    def blank(spec: Spec) -> State:
        return {name: torch.empty(leaf.shape, dtype=leaf.dtype, device="meta") for name, leaf in spec.items()}

    arrays = owner.batch_like(task, data)
    if arrays is None:
        return None
    context = Context(kernels, task.dtype, evaluation_dtype=task.evaluation_dtype)
    state = blank(task.init_spec())
    batch = {name: torch.empty(array.shape, dtype=torch.from_numpy(np.empty(0, array.dtype)).dtype, device="meta")
             for name, array in arrays.items()}
    with torch.no_grad():
        items = owner.items(task, state, batch, context)
        about, results, all_known = owner.about(task, data), dict[str, bool](), True
        for metric in owner.metrics:
            check_needs(metric, items, type(owner).__name__)
            observed = metric.observe(items, {name: blank(network.init_spec())
                                              for name, network in metric.frozen.items()}, Context(kernels))
            zeros = {name: torch.zeros(
                value.shape, dtype=torch.float32 if value.is_floating_point() else value.dtype).numpy()
                for name, value in observed.items()}
            tally = metric.tally(about)
            try:
                with np.errstate(all="ignore"):
                    tally.add(zeros, np.ones(owner.batch_size, bool))
                    found = tally.result()
            except Exception:  # zeros are no images: some metrics have no result for them
                all_known = False
                continue
            for name, value in found.items():
                if owner.shown_name(name) in results:
                    raise ValueError(f"metrics: two of them measure {owner.shown_name(name)}, one is "
                                     f"{type(metric).__name__}")
                results[owner.shown_name(name)] = isinstance(value, int | float)
    return results if all_known else None
