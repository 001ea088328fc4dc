"""The training loop, which knows of a task only what `task.Task` says."""
