"""The checksum above a saved configuration."""
from vqim.registry.config_text import parse
from vqim.registry.stamp import stamped, was_changed

TEXT = "WIDTH = 4\n\nvqim.train.num_steps = 40\n"


def test_a_stamped_text_says_the_same_and_any_changed_byte_is_seen():
    text = stamped(TEXT)
    assert not was_changed(text) and not was_changed(TEXT)
    assert [(statement.name, statement.value) for statement in parse(text, "a")] == [
        ("WIDTH", 4), ("vqim.train.num_steps", 40)]
    data = text.encode()
    for place in range(len("# sha256"), len(data)):
        changed = data[:place] + bytes([data[place] ^ 1 << place % 7]) + data[place + 1:]
        assert was_changed(changed.decode(errors="replace")), place
