"""gin files as texts."""
import re

from tests.support.processes import ROOT


def whole_text(name: str) -> str:
    """A gin file, by its path in the checkout, with everything that it includes after it."""
    text = (ROOT / name).read_text()
    return text + "".join(whole_text(included) for included in re.findall(r"^include '(.*)'", text, re.MULTILINE))
