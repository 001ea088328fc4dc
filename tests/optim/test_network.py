"""Gradients of a whole batch and of its parts; in memory they lie as optimizers take them."""
import pytest
import torch
import torch.nn.functional as F

from vqim.optim.adamw import AdamW
from vqim.optim.network import accumulate, gradients, update_network
from vqim.state.leaf import Leaf
from vqim.state.random import fold_key

KEY = torch.tensor(7, dtype=torch.int32)


def test_a_convolutions_update_is_torch_adamws_in_any_layout_of_its_gradient():
    kernel_OIHW, images_BCHW = torch.randn(6, 3, 4, 4), torch.randn(2, 3, 8, 8).to(memory_format=torch.channels_last)
    state = {"params/net/kernel": kernel_OIHW.clone()}
    optimizer = AdamW()
    spec = {"kernel": Leaf((6, 3, 4, 4), axes=("out", "in", "kh", "kw"))}
    state |= {f"optimizer/net/{name}": torch.zeros(leaf.shape) for name, leaf in optimizer.init_spec(spec).items()}
    leaves = {"kernel": state["params/net/kernel"].detach().requires_grad_()}
    loss = F.conv2d(images_BCHW, leaves["kernel"], stride=4).square().sum()
    assert not torch.autograd.grad(loss, leaves["kernel"], retain_graph=True)[0].is_contiguous()
    update_network(state, "net", gradients(loss, leaves), optimizer, gradient_norm=torch.tensor(1.0),
                   learning_rate=torch.tensor(1e-2), step=torch.tensor(0, dtype=torch.int32), keep=torch.tensor(True))

    kernel_OIHW.requires_grad_()
    reference = torch.optim.AdamW([kernel_OIHW], lr=1e-2, weight_decay=0)
    F.conv2d(images_BCHW, kernel_OIHW, stride=4).square().sum().backward()
    reference.step()
    torch.testing.assert_close(state["params/net/kernel"], kernel_OIHW.detach())


def test_a_graph_is_kept_for_another_loss_if_asked_for():
    leaves = {"x": torch.tensor(3.0, requires_grad=True)}
    square = leaves["x"].square()
    assert gradients(square, leaves, retain_graph=True)["x"] == 6.0
    assert gradients(2 * square, leaves)["x"] == 12.0
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        gradients(square, leaves)


@pytest.mark.parametrize("num_micro_batches", [1, 2, 3, 6])
def test_micro_batches_give_the_mean_of_the_whole_batch(num_micro_batches):
    x_BD, target_B = torch.randn(6, 4), torch.randn(6)
    leaves = {"w": torch.randn(4, requires_grad=True)}

    def compute(part, key, number):
        loss = (part["x"] @ leaves["w"] - part["target"]).square().mean()
        return {"loss": loss.detach(), "grads": gradients(loss, leaves)}, {}

    means, _ = accumulate(compute, {"x": x_BD, "target": target_B}, KEY, num_micro_batches)
    residual_B = (x_BD @ leaves["w"] - target_B).detach()
    torch.testing.assert_close(means["loss"], residual_B.square().mean())
    torch.testing.assert_close(means["grads"]["w"], (2 * residual_B @ x_BD) / 6)


@pytest.mark.parametrize("num_micro_batches", [1, 2, 3, 6])
def test_sums_of_micro_batches_add_up_to_that_of_the_whole_batch(num_micro_batches):
    codes_B = torch.tensor([0, 2, 2, 1, 2, 0])
    _, sums = accumulate(lambda part, key, number: ({}, {"counts": torch.eye(4)[part["codes"]].sum(0)}),
                         {"codes": codes_B}, KEY, num_micro_batches)
    assert sums["counts"].tolist() == [2, 1, 3, 0]


def test_each_micro_batch_has_every_nth_row_a_key_of_its_own_and_its_number():
    seen = []

    def compute(part, key, number):
        seen.append((part["x"].tolist(), key.item(), number))
        return {}, {}

    accumulate(compute, {"x": torch.arange(6)}, KEY, 2)
    assert seen == [([0, 2, 4], fold_key(KEY, 0).item(), 0), ([1, 3, 5], fold_key(KEY, 1).item(), 1)]


def test_one_micro_batch_is_the_batch_with_the_steps_own_key():
    batch = {"x": torch.arange(6)}
    means, _ = accumulate(lambda part, key, number: ((part is batch, key is KEY, number), {}), batch, KEY, 1)
    assert means == (True, True, 0)


@pytest.mark.parametrize(("kind", "expected"), [(0, 259 / 4), (1, 259.0)], ids=["means", "sums"])
def test_half_precision_is_summed_in_float32(kind, expected):
    rows_B = torch.tensor([256.0, 1.0, 1.0, 1.0])  # in bfloat16, 256 + 1 is 256
    computed = accumulate(lambda part, key, number: [{"x": part["x"].sum().bfloat16()}] * 2, {"x": rows_B}, KEY, 4)
    assert computed[kind]["x"].dtype == torch.float32 and computed[kind]["x"].item() == expected


def test_leaves_that_a_loss_does_not_reach_are_named():
    leaves = {name: torch.tensor(2.0, requires_grad=True) for name in ("used", "idle", "stale")}
    with pytest.raises(ValueError, match="trains must leave out what no loss reaches, .* depends on idle, stale"):
        gradients(leaves["used"].square(), leaves)


def test_parameters_without_gradients_are_not_updated():
    state = {"params/net/moves": torch.ones(2), "params/net/stays": torch.ones(2),
             **{f"optimizer/net/{slot}/moves": torch.zeros(2) for slot in "mv"}}
    optimizer = AdamW()
    optimizer.init_spec({"moves": Leaf((2,), axes=("features",))}, untrained=["stays"])
    update_network(
        state, "net", {"moves": torch.tensor([3.0, 4.0])}, optimizer, gradient_norm=torch.tensor(5.0),
        learning_rate=torch.tensor(0.5), step=torch.tensor(0, dtype=torch.int32), keep=torch.tensor(True))
    assert state["params/net/stays"].tolist() == [1, 1]
    assert state["params/net/moves"].tolist() == pytest.approx([0.5, 0.5])  # Adam's first step is a rate long
