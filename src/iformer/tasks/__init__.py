"""Tasks: data, loss, decoding and metrics of each kind of network. The loop is in `iformer.training`."""
