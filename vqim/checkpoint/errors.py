"""The errors of checkpoints."""


class CheckpointError(RuntimeError):
    """A checkpoint could not be saved, is damaged, or was written by a newer version."""


class NoCheckpointError(CheckpointError, FileNotFoundError):
    """There is no such committed checkpoint."""
