"""A run whose data have changed since its checkpoint."""
import numpy as np
import pytest

from vqim.data.loader import Loader
from vqim.data.order import shuffled
from vqim.training.data_identity import DataChangedError, check_same, identity, moved


def data(classes=("a", "b"), train=10, fingerprint="1"):
    return {"classes": list(classes), "num_examples": {"train": train, "validation": 2},
            "fingerprints": {"train": fingerprint, "validation": "v"}}


def test_the_same_data_and_checkpoints_without_a_record_are_accepted(caplog):
    assert not check_same(data(), data(), accept=False)
    assert not check_same(None, data(), accept=False)
    assert caplog.text == ""


@pytest.mark.parametrize(("classes", "message"), [
    (("a", "c"), "gone: b; new: c"), (("b", "a"), "their order"), (("a",), "gone: b"), (("a", "b", "c"), "new: c"),
])
@pytest.mark.parametrize("accept", [False, True])
def test_other_classes_are_never_accepted(classes, message, accept):
    with pytest.raises(DataChangedError, match=f"the classes of the data differ from .*: {message}. Give the data"):
        check_same(data(), data(classes), accept)


def test_another_number_of_examples_is_refused_and_accepted_on_purpose(caplog):
    with pytest.raises(DataChangedError, match="there are 9 training examples, and were 10 when .* "
                                               "train.accept_changed_data = True"):
        check_same(data(), data(train=9), accept=False)
    assert check_same(data(), data(train=9), accept=True)
    assert "going on with a new order" in caplog.text


def test_other_examples_of_the_same_number_are_warned_of(caplog):
    assert not check_same(data(), data(fingerprint="2"), accept=False)
    assert "The train examples are not the same as when the checkpoint was saved" in caplog.text


def test_after_a_change_the_next_epoch_begins_with_the_new_number_of_examples():
    def loader(num_examples):
        return Loader(lambda epochs, records: {"epochs": epochs, "records": records}, num_examples, 4, seed=3)

    before, after = loader(10), loader(12)
    for _ in range(4):  # 16 examples: in the second epoch
        next(before)
    after.restore(moved(before.position(), 12))
    batches = [next(after) for _ in range(3)]
    assert all((batch["epochs"] == 2).all() for batch in batches)
    expected = shuffled(np.arange(24, 36), 12, 3)[1].tolist()
    assert [record for batch in batches for record in batch["records"].tolist()] == expected
    before.close(), after.close()


def test_a_data_set_that_tells_no_fingerprint_has_none():
    class Plain:
        class_names = ("x",)

        def num_examples(self, split):
            return {"train": 3, "validation": 1}[split]

    assert identity(Plain()) == {"classes": ["x"], "num_examples": {"train": 3, "validation": 1}, "fingerprints": {}}
