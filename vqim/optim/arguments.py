"""Checks of constructor arguments, so that a wrong value stops a run before any work."""


def require(satisfied: bool, argument: str, allowed: str, got: object) -> None:
    """Raises ValueError, with the argument's name, allowed values and actual value, unless `satisfied`."""
    if not satisfied:
        raise ValueError(f"{argument} must be {allowed}, got {got!r}")


def require_step_count(argument: str, value: int, minimum: int) -> None:
    """Raises ValueError unless `value` is an integer (no bool, no float) of at least `minimum`."""
    require(type(value) is int and value >= minimum, argument, f"an integer of at least {minimum}", value)
