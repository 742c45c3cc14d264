"""Weight files: checkpoints, other dialects of key names, the hub, and what a name means."""
