"""What a run says of its data."""
import pytest

from vqim.data.images import Images
from vqim.data.source import Emoji
from vqim.training.facts import Facts, read_facts, write_facts


def test_what_is_written_of_data_is_read(tmp_path):
    data = Images(Emoji, 24)
    write_facts(tmp_path / "run", data)
    assert read_facts(tmp_path / "run") == Facts(24, data.class_names, {"train": 1522, "validation": 370})
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["run.json"]


def test_any_changed_byte_is_found(tmp_path):
    write_facts(tmp_path, Images(Emoji, 24))
    path = tmp_path / "run.json"
    whole = path.read_bytes()
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << place % 8]) + whole[place + 1:])
        with pytest.raises(ValueError, match=r"run\.json must say what the run's data are"):
            read_facts(tmp_path)


@pytest.mark.parametrize("text", [None, "", "{}", "[]", '{"image_size": 24, "class_names": ["a"]}'])
def test_a_file_that_is_missing_or_damaged_is_named_with_what_mends_it(tmp_path, text):
    if text is not None:
        (tmp_path / "run.json").write_text(text)
    with pytest.raises(ValueError, match=r"run\.json must say what the run's data are, .* training command again"):
        read_facts(tmp_path)
