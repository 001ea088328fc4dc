"""Where the emoji pictures are. They lie beside this file, in a checkout as in an installed wheel."""
from pathlib import Path


def find_dataset() -> Path:
    """The .npz file with `images`, `labels`, `class_names`, `emoji_names` and `is_validation`.

    Raises:
      FileNotFoundError: the installation is incomplete.
    """
    path = Path(__file__).with_name("noto_emoji_64.npz")
    if not path.is_file():
        raise FileNotFoundError(f"the embedded emoji set is missing: expected {path}. Install vqim again, or restore "
                                "third_party/noto_emoji in the checkout.")
    return path
