"""The training objective of an image classifier.

    B batch, Y classes
"""
from collections.abc import Mapping

import torch.nn.functional as F
from torch import Tensor

from vqim.classifier.model import ImageClassifier
from vqim.contracts.context import Context
from vqim.contracts.data import Dataset, check_labelled_data
from vqim.contracts.evaluation import Items
from vqim.contracts.learning import Computed, MakeLearner, OneLearner
from vqim.nn.module import apply
from vqim.state import sections
from vqim.state.leaf import State
from vqim.tokenizer.model import images_to_float


class ClassifierObjective(OneLearner):
    """The cross-entropy of the data's labels.

    Args:
      network: the network to train.
      learner: how it is trained, `@training.Learner`.
    """

    name = "classifier"

    def __init__(self, network: ImageClassifier, learner: MakeLearner):
        self.network, self.num_classes = network, network.num_classes
        self.learner = learner(name=self.name, module=network)

    def check_data(self, data: Dataset) -> None:
        """Raises ValueError unless the data are images with the network's size and number of classes."""
        check_labelled_data(data, self.network.num_classes, self.network.image_size)

    def compute(
        self, leaves: Mapping[str, State], arrays: State, batch: dict[str, Tensor], context: Context, program: str,
    ) -> Computed:
        """See `vqim.contracts.learning.Objective`."""
        logits_BY = apply(self.network.forward, leaves[self.name], images_to_float(batch["images"]), context)
        labels_B = batch["labels"].long()
        accuracy = (logits_BY.detach().argmax(-1) == labels_B).float().mean()
        return Computed({self.name: F.cross_entropy(logits_BY, labels_B)}, {"accuracy": accuracy})

    def classify(self, state: State, batch: dict[str, Tensor], context: Context) -> Items:
        """Class logits in evaluation mode, float32 [1, B, Y]."""
        logits_BY = apply(self.network.forward, sections.network_arrays(state, self.name),
                          images_to_float(batch["images"]), context.evaluation())
        return Items(batch["valid"], batch["labels"].long(), logits_LBY=logits_BY[None])
