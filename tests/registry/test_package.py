"""`import gin` is gin-config, and says so where it is not."""
import subprocess
import sys

from tests.support.processes import ROOT


def run(folder, *options, code):
    return subprocess.run([sys.executable, *options, "-c", code], cwd=folder, capture_output=True, text=True)


def test_import_gin_in_the_checkout_finds_gin_config():
    done = run(ROOT, code="import gin; print(hasattr(gin, 'configurable'))")
    assert done.stdout.strip() == "True", done.stderr


def test_the_checkouts_gin_folder_is_no_python_package():
    assert list((ROOT / "gin").rglob("*.py")) == []


def test_a_missing_gin_config_is_named_when_the_checkouts_folder_is_found_instead():
    # -S leaves out site-packages, and -c puts the working directory on the path.
    done = run(ROOT, "-S", code="import vqim.registry")
    assert "pip install gin-config" in done.stderr
    assert "not the package gin-config" in done.stderr


def test_a_missing_gin_config_is_named_where_nothing_is_found_instead(tmp_path):
    (tmp_path / "vqim").symlink_to(ROOT / "vqim")
    done = run(tmp_path, "-S", code="import vqim.registry")
    assert "pip install gin-config" in done.stderr
    assert "No module named 'gin'" in done.stderr
