"""A bucket for tests of checkpoints."""
import pytest

from tests.support import object_store


@pytest.fixture(scope="session")
def s3_server():
    """The address of an S3 server."""
    with object_store.s3_server() as address:
        yield address


@pytest.fixture
def bucket(s3_server, monkeypatch):
    """The URL of an empty bucket, which this process may read and write."""
    object_store.use(monkeypatch, s3_server)
    return object_store.new_bucket(s3_server)
