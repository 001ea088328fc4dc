"""How long torch's threads spin while they wait, which the environment says before torch is loaded."""
import importlib

import pytest

import launch


@pytest.mark.parametrize("given, want", [
    ({}, "10000"),
    ({"GOMP_SPINCOUNT": "7"}, "7"),
    ({"OMP_WAIT_POLICY": "PASSIVE"}, None),
])
def test_threads_spin_for_a_short_while_unless_the_environment_says_something_else(monkeypatch, given, want):
    environment = dict(given)
    monkeypatch.setattr("os.environ", environment)
    importlib.reload(launch)
    assert environment.get("GOMP_SPINCOUNT") == want
