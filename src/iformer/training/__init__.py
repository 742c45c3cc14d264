"""The training loop and its parts: step, optimizer, schedule, state, checkpoints, records."""
