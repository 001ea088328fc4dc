"""Sensitivity of tokens: what disturbs images, and the shares of codes that change, against slow loops."""
import io
import itertools
import json

import numpy as np
import pytest
import torch
from PIL import Image

from vqim.contracts.context import Context
from vqim.contracts.evaluation import About, Items
from vqim.contracts.grid import Level, TokenGrid
from vqim.evaluation.passes import Reconstructions, evaluate
from vqim.evaluation.sensitivity import DISTURBANCES, Disturbances, TokenChanges
from vqim.nn.module import apply
from vqim.runtime.torch import TorchRuntime
from vqim.state.leaf import select
from vqim.tokenizer.model import images_to_float

RUNTIME = TorchRuntime()
CONTEXT = Context(RUNTIME.kernels)


def measure(run, data, batch_size=128, evaluator=None):
    task, state = run
    evaluator = evaluator or Disturbances([TokenChanges()], batch_size=batch_size)
    return evaluate(evaluator.begin(task, data, state, RUNTIME))


def tokens_of(run, prefix, images):
    task, state = run
    images_BCHW = images_to_float(torch.from_numpy(np.stack(images)))
    return apply(task.objective.tokenizer.tokens, select(state, prefix), images_BCHW, CONTEXT)


def test_noise_has_a_hundredth_of_the_range_and_no_mean():
    grey = np.full((200, 200, 3), 128, np.uint8)
    noise = (DISTURBANCES["noise"](grey).astype(float) - 128) / 255
    # Rounding adds a uniform variance of 1/12 level.
    assert noise.std() == pytest.approx((0.01 ** 2 + 1 / 12 / 255 ** 2) ** 0.5, rel=0.01)
    assert abs(noise.mean()) < 4 * 0.01 / 120_000 ** 0.5


def test_noise_does_not_wrap_around_at_black_and_white():
    for value in (0, 255):
        image = np.full((64, 64, 3), value, np.uint8)
        assert np.abs(DISTURBANCES["noise"](image).astype(int) - value).max() < 20


def test_jpeg_is_what_a_file_of_quality_95_holds(data):
    file = io.BytesIO()
    Image.fromarray(data.images[3]).save(file, "JPEG", quality=95)
    np.testing.assert_array_equal(DISTURBANCES["jpeg"](data.images[3]), np.asarray(Image.open(file)))


def test_shift_moves_every_pixel_one_to_the_right(data):
    image = data.images[3]
    shifted = DISTURBANCES["shift"](image)
    for y, x in itertools.product(range(16), range(16)):
        assert np.array_equal(shifted[y, x], image[y, max(0, x - 1)])


def test_resize_keeps_a_smooth_image_and_takes_its_finest_detail():
    ramp = np.repeat(np.arange(40, 216, 11, dtype=np.uint8)[None, :, None], 16, 0).repeat(3, 2)
    stripes = np.where(np.arange(16) % 2, 255, 0).astype(np.uint8)[None, :, None].repeat(16, 0).repeat(3, 2)
    error = {name: np.abs(DISTURBANCES["resize"](image).astype(float) - image)[:, 3:-3].mean()
             for name, image in (("ramp", ramp), ("stripes", stripes))}
    assert error["ramp"] < 1 and error["stripes"] > 40


def test_the_share_of_changed_codes_is_that_of_a_loop_over_images(tokenizer_run, data):
    run = tokenizer_run()
    results, before = measure(run, data), tokens_of(run, "params/tokenizer/", data.images)
    shares = {}
    for name, change in DISTURBANCES.items():
        after = tokens_of(run, "params/tokenizer/", [change(image) for image in data.images])
        pairs = zip(before.flatten().tolist(), after.flatten().tolist(), strict=True)
        shares[name] = np.mean([a != b for a, b in pairs])
        assert results[f"token_changes/{name}"] == pytest.approx(shares[name], abs=1e-7)
    assert 0 < shares["noise"] < shares["shift"] < 1  # a random network, and real changes


def test_a_prior_measures_its_own_tokenizer(prior_run, data):
    run = prior_run()
    results, before = measure(run, data), tokens_of(run, "frozen/tokenizer/", data.images)
    after = tokens_of(run, "frozen/tokenizer/", [DISTURBANCES["noise"](image) for image in data.images])
    assert results["token_changes/noise"] == pytest.approx((before != after).float().mean().item(), abs=1e-7)


def test_two_levels_are_measured_as_one_sequence(tokenizer_run, data):
    run = tokenizer_run(sizes=(12, 20))
    before = tokens_of(run, "params/tokenizer/", data.images)
    after = tokens_of(run, "params/tokenizer/", [DISTURBANCES["jpeg"](image) for image in data.images])
    assert measure(run, data)["token_changes/jpeg"] == pytest.approx(
        (before != after).float().mean().item(), abs=1e-7)


def test_shares_do_not_depend_on_the_batch_size(tokenizer_run, data):
    run = tokenizer_run()
    first, second = measure(run, data, 300), measure(run, data, 7)
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert value == second[name] if isinstance(value, str) else value == pytest.approx(second[name], abs=1e-5)


def changes(tokens_BNK, disturbed_BNK, vocabulary, valid_B=None):
    """What the metric says of these tokens."""
    count, positions, channels = tokens_BNK.shape
    about = About("disturbances", count, TokenGrid((Level(1, positions, channels, vocabulary),)), 0)
    valid_B = np.ones(count, bool) if valid_B is None else valid_B
    items = Items(torch.from_numpy(valid_B), tokens_BNK=torch.from_numpy(tokens_BNK),
                  disturbed_tokens={"noise": torch.from_numpy(disturbed_BNK)}, measures={})
    metric = TokenChanges()
    tally = metric.tally(about)
    tally.add({name: value.numpy() for name, value in metric.observe(items, {}, CONTEXT).items()}, valid_B)
    return tally.result()


def test_with_several_codes_a_position_counts_if_any_of_them_changes():
    before = np.zeros((1, 4, 2), np.int64)
    after = before.copy()
    after[0, 0, 0] = after[0, 0, 1] = after[0, 3, 1] = 1
    found = changes(before, after, 2)
    assert found["token_changes/noise"] == pytest.approx(3 / 8)
    assert found["token_changes/noise_positions"] == pytest.approx(2 / 4)


def test_what_only_fills_the_batch_does_not_count():
    before = np.zeros((2, 4, 1), np.int64)
    after = np.stack([before[0], before[1] + 1])
    assert changes(before, after, 2, np.array([True, False]))["token_changes/noise"] == 0


def test_unrelated_images_are_all_pairs_at_the_same_place():
    tokens = np.random.default_rng(0).integers(0, 5, (9, 6, 2)) ** 2 // 5  # unevenly used codes
    differ = [tokens[i] != tokens[j] for i, j in itertools.combinations(range(9), 2)]
    assert changes(tokens, tokens, 5)["token_changes/unrelated_images"] == pytest.approx(np.mean(differ))


def test_the_change_of_pixels_is_told_in_decibels(tokenizer_run, data):
    results = measure(tokenizer_run(), data)
    errors = [(DISTURBANCES["shift"](image) / 255 - image / 255) ** 2 for image in data.images]
    expected = np.mean([min(100, -10 * np.log10(max(error.mean(), 1e-10))) for error in errors])
    assert results["token_changes/shift_psnr"] == pytest.approx(expected, abs=1e-3)


def test_the_protocol_says_what_was_done_to_images(tokenizer_run, data):
    protocol = json.loads(measure(tokenizer_run(), data)["protocol/token_changes/noise"])
    assert "quality 95" in protocol["jpeg"] and "one pixel" in protocol["shift"]
    assert protocol["split"] == "validation" and protocol["count"] == "300"


def test_a_pass_without_disturbed_images_is_refused(tokenizer_run, data):
    with pytest.raises(ValueError, match="TokenChanges needs disturbed_tokens, measures"):
        measure(tokenizer_run(), data, evaluator=Reconstructions([TokenChanges()], batch_size=64))


def test_data_that_are_tokens_are_refused(prior_run, data):
    class Tokens(type(data)):
        def evaluation(self, *args, **kwargs):
            for batch in super().evaluation(*args, **kwargs):
                yield {"tokens": batch["images"][:, 0, :, :1].astype(int), "valid": batch["valid"]}

    with pytest.raises(ValueError, match="Disturbances needs images"):
        measure(prior_run(), Tokens())
