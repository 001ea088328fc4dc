"""The training loop, which knows a task only as `vqim.contracts.task.Task`."""
