"""Weight files: checkpoints, key names of other codes, the hub, and what a name means."""
