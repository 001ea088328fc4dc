"""The token cache: what is written is read, atomically; views, order, and caches that do not fit."""
import json

import numpy as np
import pytest

from vqim.data.faults import WrongExampleError
from vqim.data.token_cache import TokenCacheWriter, Tokens

LEVELS = ((4, 4, 2, 512),)
SIZES = {"train": 10, "validation": 4}
NUM_VIEWS = 3


def tokens_of(split, view, example):
    """Tokens [16, 2] that no other row has."""
    return np.random.default_rng([SIZES[split], view, example]).integers(0, 512, (16, 2))


def write(path, split, num_views, levels=LEVELS, fingerprint="tokenizer-1", make=tokens_of, batch_size=4, **settings):
    """Writes a split as `Images.views` would give it, in batches, the last of them padded."""
    rows = [(make(split, view, example), example % 3) for view in range(num_views) for example in range(SIZES[split])]
    with TokenCacheWriter(path, split, levels=levels, fingerprint=fingerprint, image_size=32,
                          class_names=("a", "b", "c"), num_views=num_views, **settings) as writer:
        for first in range(0, len(rows), batch_size):
            batch = rows[first:first + batch_size]
            padding = batch_size - len(batch)
            tokens_BNK = np.stack([tokens for tokens, _ in batch] + [np.zeros_like(batch[0][0])] * padding)
            writer.write(tokens_BNK, np.array([label for _, label in batch] + [0] * padding),
                         np.array([True] * len(batch) + [False] * padding))


@pytest.fixture
def cache(tmp_path):
    """A cache with three views of ten training images, and four validation images."""
    write(tmp_path / "cache", "train", NUM_VIEWS)
    write(tmp_path / "cache", "validation", 1)
    return tmp_path / "cache"


def replace(path, data):
    """Gives a path to another file; the old one stays as it is for those who read it, loaders' threads among them."""
    temporary = path.with_suffix(".new")
    temporary.write_bytes(data)
    temporary.replace(path)


def take(loader, count):
    return [next(loader) for _ in range(count)]


def test_an_evaluation_has_the_rows_as_they_were_written(cache):
    batches = list(Tokens(cache).evaluation(3))
    assert [batch["valid"].tolist() for batch in batches] == [[True] * 3, [True, False, False]]
    tokens_BNK = np.concatenate([batch["tokens"] for batch in batches])
    assert tokens_BNK.dtype == np.int32
    np.testing.assert_array_equal(tokens_BNK[:4], [tokens_of("validation", 0, example) for example in range(4)])
    assert np.concatenate([batch["labels"] for batch in batches])[:4].tolist() == [0, 1, 2, 0]


def test_a_token_cache_says_what_it_holds(cache):
    tokens = Tokens(cache)
    assert (tokens.num_examples("train"), tokens.num_examples("validation")) == (10, 4)
    assert tokens.levels == LEVELS and tokens.fingerprint == "tokenizer-1" and tokens.image_size == 32
    assert tokens.class_names == ("a", "b", "c") and tokens.num_classes == 3


def test_tokens_of_small_vocabularies_take_two_bytes(cache):
    array = np.load(cache / "train" / "tokens.npy")
    assert array.dtype == np.uint16 and array.shape == (30, 16, 2)


def test_large_vocabularies_are_kept(tmp_path):
    def large(split, view, example):
        return np.full((16, 2), 2**16 + example)

    for split in SIZES:
        write(tmp_path, split, 1, levels=((4, 4, 2, 2**18),), make=large)
    assert next(iter(Tokens(tmp_path).evaluation(4)))["tokens"][3, 0, 0] == 2**16 + 3


def identify(batch):
    """(view, example) of each row of a training batch."""
    rows = {tokens_of("train", view, example).tobytes(): (view, example)
            for view in range(NUM_VIEWS) for example in range(SIZES["train"])}
    return [rows[tokens.astype(np.int64).tobytes()] for tokens in batch["tokens"]]


def test_an_epoch_has_each_example_once_and_num_views_epochs_have_each_view_once(cache):
    loader = Tokens(cache).training(5, seed=0)
    seen = [row for batch in take(loader, 6) for row in identify(batch)]
    for epoch in range(3):
        assert sorted(example for _, example in seen[10 * epoch:10 * epoch + 10]) == list(range(10))
    assert sorted(seen) == [(view, example) for view in range(3) for example in range(10)]


def test_views_are_mixed_within_an_epoch(cache):
    assert {view for view, _ in identify(next(Tokens(cache).training(10, seed=0)))} == {0, 1, 2}


def test_labels_follow_their_tokens(cache):
    batch = next(Tokens(cache).training(10, seed=1))
    assert batch["labels"].tolist() == [example % 3 for _, example in identify(batch)]
    assert batch["labels"].dtype == np.int32 and batch["valid"].all()


def test_restoring_continues_exactly(cache):
    loader = Tokens(cache).training(4, seed=7)
    take(loader, 4)
    position = json.loads(json.dumps(loader.position()))
    fresh = Tokens(cache).training(4, seed=7)
    fresh.restore(position)
    for one, other in zip(take(fresh, 6), take(loader, 6), strict=True):
        np.testing.assert_array_equal(one["tokens"], other["tokens"])


def test_processes_share_the_batches_of_one(cache):
    alone = next(Tokens(cache).training(6, seed=0))["tokens"]
    parts = [next(Tokens(cache).training(2, seed=0, process_index=i, process_count=3))["tokens"] for i in range(3)]
    np.testing.assert_array_equal(np.concatenate(parts), alone)


def test_levels_have_vocabularies_of_their_own(tmp_path):
    levels = ((2, 2, 1, 100), (1, 1, 1, 5))
    with TokenCacheWriter(tmp_path, "train", levels=levels, fingerprint="", image_size=8, class_names=()) as writer:
        writer.write(np.array([[[99], [0], [0], [99], [4]]]), np.array([-1]), np.array([True]))
        with pytest.raises(ValueError, match="within the vocabularies of .* got 5"):
            writer.write(np.array([[[99], [0], [0], [99], [5]]]), np.array([-1]), np.array([True]))


def test_a_missing_cache_is_named_with_the_command_that_writes_one(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"train holds no token cache.*launch\.cache_tokens"):
        Tokens(tmp_path).num_examples("train")


def test_nothing_is_opened_before_it_is_needed(tmp_path):
    tokens = Tokens(tmp_path / "cache")
    for split, num_views in (("train", NUM_VIEWS), ("validation", 1)):
        write(tmp_path / "cache", split, num_views)
    assert tokens.num_examples("validation") == 4


def test_batch_like_has_the_shapes_and_types_of_a_batch(cache):
    tokens = Tokens(cache)
    like, batch = tokens.batch_like(5), next(tokens.training(5, seed=0))
    assert {name: (array.shape, array.dtype) for name, array in like.items()} == {
        name: (array.shape, array.dtype) for name, array in batch.items()}


def test_an_interrupted_write_leaves_no_cache(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        with TokenCacheWriter(tmp_path, "train", levels=LEVELS, fingerprint="", image_size=8, class_names=()) as writer:
            writer.write(np.zeros((1, 16, 2), int), np.array([-1]), np.array([True]))
            raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_nothing_has_the_final_name_before_the_end(tmp_path):
    with TokenCacheWriter(tmp_path, "train", levels=LEVELS, fingerprint="", image_size=8, class_names=()) as writer:
        writer.write(np.zeros((1, 16, 2), int), np.array([-1]), np.array([True]))
        assert not (tmp_path / "train").exists()
    assert sorted(path.name for path in (tmp_path / "train").iterdir()) == [
        "crc32.npy", "labels.npy", "metadata.json", "tokens.npy"]


def test_what_a_killed_run_left_does_not_matter(tmp_path):
    left = TokenCacheWriter(tmp_path, "train", levels=LEVELS, fingerprint="", image_size=8, class_names=())
    left.write(np.ones((1, 16, 2), int), np.array([-1]), np.array([True]))  # and no more of it
    for split in SIZES:
        write(tmp_path, split, 1)
    assert Tokens(tmp_path).num_examples("train") == 10


def test_an_existing_cache_is_not_overwritten(cache):
    with pytest.raises(FileExistsError, match="train exists"):
        write(cache, "train", 1)
    assert Tokens(cache).num_examples("train") == 10


def test_a_truncated_token_file_is_refused(cache):
    path = cache / "train" / "tokens.npy"
    path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(ValueError, match=r"tokens\.npy: expected a whole NumPy array, it is missing, tr"):
        Tokens(cache).num_examples("train")


@pytest.mark.parametrize(("name", "array"), [
    ("tokens.npy", np.zeros((29, 16, 2), np.uint16)), ("tokens.npy", np.zeros((30, 16, 2), np.int32)),
])
def test_files_that_do_not_fit_their_metadata_are_refused(cache, name, array):
    np.save(cache / "train" / name, array)
    with pytest.raises(ValueError, match=rf"{name}: expected .* by its metadata, got"):
        Tokens(cache).num_examples("train")


def test_a_changed_bit_in_a_row_of_tokens_is_found_where_the_row_is_read(cache):
    path = cache / "train/tokens.npy"
    data = bytearray(path.read_bytes())
    data[-3 * 16 * 2 * 2] ^= 1  # in the third row from the end, of 30
    path.write_bytes(data)
    with pytest.raises(WrongExampleError, match=r"train/tokens.npy: row 27 is damaged: its checksum does not match"):
        take(Tokens(cache).training(4, 0), 20)


def test_a_changed_bit_in_any_file_of_a_cache_is_found_or_harmless(cache):
    def read():
        tokens = Tokens(cache)
        return [{name: array.tolist() for name, array in batch.items()}
                for batch in [*tokens.evaluation(5, split="train"), *take(tokens.training(5, 0), 6)]], tokens.describe()

    whole, results = read(), set()
    generator = np.random.default_rng(0)
    for path in sorted((cache / "train").iterdir()):
        before = path.read_bytes()
        for place in generator.integers(0, len(before), 60):
            changed = bytearray(before)
            changed[place] ^= 1 << int(generator.integers(8))
            replace(path, changed)
            try:
                assert read() == whole, f"{path.name}, byte {place}"
                results.add((path.name, "harmless"))
            except (ValueError, WrongExampleError) as error:
                assert path.name in str(error)
                results.add((path.name, "found"))
        replace(path, before)
    assert {(name, "found") for name in ("crc32.npy", "labels.npy", "metadata.json", "tokens.npy")} <= results
    assert ("labels.npy", "harmless") not in results


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"format": 1}', '{"format": 2, "levels": [[4, 4, 2]]}'])
def test_metadata_that_is_none_is_refused(cache, text):
    (cache / "train" / "metadata.json").write_text(text)
    with pytest.raises(ValueError, match=r"metadata\.json: expected the metadata of a token cache, got "):
        Tokens(cache).num_examples("train")


def test_splits_of_different_tokenizers_are_refused(tmp_path):
    write(tmp_path, "train", 1, fingerprint="one")
    write(tmp_path, "validation", 1, fingerprint="two")
    with pytest.raises(ValueError, match="splits differ in fingerprint: one and two"):
        Tokens(tmp_path).num_examples("train")


def test_a_cache_names_the_dtype_that_it_was_computed_in(cache, tmp_path):
    assert Tokens(cache).computed_in == "float32"
    for split, views in (("train", 2), ("validation", 1)):
        write(tmp_path / "rough", split, views, computed_in="bfloat16")
    assert Tokens(tmp_path / "rough").computed_in == "bfloat16"


def test_splits_that_were_computed_in_two_dtypes_are_refused(tmp_path):
    write(tmp_path, "train", 1)
    write(tmp_path, "validation", 1, computed_in="bfloat16")
    with pytest.raises(ValueError, match="splits differ in computed_in: float32 and bfloat16"):
        Tokens(tmp_path).num_examples("train")


def test_the_tokenizer_that_wrote_it_is_accepted_and_others_are_refused(cache):
    tokens = Tokens(cache)
    tokens.check_written_by([[4, 4, 2, 512]], "tokenizer-1")
    with pytest.raises(ValueError, match=r"grid \(\(8, 8, 1, 512\),\), got grid \(\(4, 4, 2, 512\),\)"):
        tokens.check_written_by([[8, 8, 1, 512]], "tokenizer-1")
    with pytest.raises(ValueError, match="fingerprint tokenizer-2, got fingerprint tokenizer-1"):
        tokens.check_written_by(LEVELS, "tokenizer-2")


@pytest.mark.parametrize(("tokens_BNK", "labels_B", "message"), [
    (np.zeros((2, 15, 2), int), [0, 0], r"expected integers \[2, 16, 2\] .* got int64 \[2, 15, 2\]"),
    (np.zeros((2, 16, 2)), [0, 0], "expected integers .* got float64"),
    (np.full((2, 16, 2), 512), [0, 0], "got 512"),
    (np.full((2, 16, 2), -1), [0, 0], "got -1"),
    (np.zeros((2, 16, 2), int), [0, 1], "expected labels from 0 to 0"),
])
def test_rows_that_do_not_fit_are_refused(tmp_path, tokens_BNK, labels_B, message):
    with pytest.raises(ValueError, match=message):
        with TokenCacheWriter(tmp_path, "train", levels=LEVELS, fingerprint="", image_size=8,
                              class_names=("only",)) as writer:
            writer.write(tokens_BNK, np.array(labels_B), np.array([True, True]))


@pytest.mark.parametrize("labels", [[0, 1, 0], [0, 1, 1, 0], []])
def test_views_that_are_not_of_the_same_examples_are_refused(tmp_path, labels):
    with pytest.raises(ValueError, match="expected 2 views of the same examples"):
        with TokenCacheWriter(tmp_path, "train", levels=LEVELS, fingerprint="", image_size=8,
                              class_names=("a", "b"), num_views=2) as writer:
            writer.write(np.zeros((len(labels), 16, 2), int), np.array(labels, int), np.ones(len(labels), bool))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("levels", [[], [(4, 4, 2)], [(4, 0, 2, 8)], [(4, 4, 2, 8), (2, 2, 1, 8)]])
def test_grids_that_make_no_sense_are_refused(tmp_path, levels):
    with pytest.raises(ValueError, match="levels: expected"):
        TokenCacheWriter(tmp_path, "train", levels=levels, fingerprint="", image_size=8, class_names=())
