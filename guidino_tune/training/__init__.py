"""The training loop that both executors run, its optimisers, checkpoints and the `Reporter` protocol."""
