"""Tasks: loss, decoding and metric of a network; no loop."""
