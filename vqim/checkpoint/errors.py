"""What goes wrong with checkpoints."""


class CheckpointError(RuntimeError):
    """A checkpoint could not be saved, is damaged, or was written by a newer version."""


class NoCheckpointError(CheckpointError, FileNotFoundError):
    """There is no committed checkpoint where one was asked for."""
