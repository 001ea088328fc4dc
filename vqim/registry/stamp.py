"""A checksum in the first line of a run's config.gin, so that a reader knows whether it is as training wrote it."""
import hashlib
import re

_LINE = re.compile(r"# sha256 of all that follows: ([0-9a-f]{64})\n")


CHANGED = "config.gin is not as training wrote it: it was edited, or is damaged"
"""What to say of a text that was changed."""


def stamped(text: str) -> str:
    """A gin text with its checksum in a comment above it."""
    return f"# sha256 of all that follows: {_digest(text)}\n{text}"


def was_changed(text: str) -> bool:
    """Whether a stamped text is not what was stamped; a text without a stamp has not been changed."""
    found = _LINE.match(text)
    if found is None:
        return text.startswith("# sha256")
    return found[1] != _digest(text[found.end():])


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
