"""gin's configuration as a thing that can be put aside and taken up again, since gin keeps it in global variables."""
import contextlib
import copy
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

from gin import config as gin_config


@contextlib.contextmanager
def separate() -> Iterator[Callable[[], AbstractContextManager[None]]]:
    """A context with an empty configuration of its own; afterwards gin is as it was before.

    Yields a function that makes a context in which this configuration, as it was at the end, is in force again: for
    what was built in it and calls components later.
    """
    kept: dict[str, Any] = {}

    @contextlib.contextmanager
    def again() -> Iterator[None]:
        before = _take()
        _put(kept)
        try:
            yield
        finally:
            _put(before)

    before = _take()
    _put({"config": {}, "imports": set(), "operative": {}, "singletons": {}, "locked": False})
    try:
        yield again
    finally:
        kept |= _take()
        _put(before)


def _take() -> dict[str, Any]:
    """What gin's global variables hold."""
    with gin_config._OPERATIVE_CONFIG_LOCK:
        operative = copy.copy(dict(gin_config._OPERATIVE_CONFIG))
    return {"config": {key: dict(values) for key, values in gin_config._CONFIG.items()},
            "imports": set(gin_config._IMPORTS), "operative": operative, "singletons": dict(gin_config._SINGLETONS),
            "locked": gin_config.config_is_locked()}


def _put(held: dict[str, Any]) -> None:
    """Fills gin's global variables."""
    for variable, name in ((gin_config._CONFIG, "config"), (gin_config._SINGLETONS, "singletons"),
                           (gin_config._OPERATIVE_CONFIG, "operative")):
        variable.clear()
        variable.update(held[name])
    gin_config._IMPORTS.clear()
    gin_config._IMPORTS.update(held["imports"])
    gin_config._set_config_is_locked(held["locked"])
