"""gin's tables are global: the configuration that a test loads is gone after it."""
import gin
import pytest


@pytest.fixture(autouse=True)
def no_configuration_stays():
    yield
    gin.clear_config()
