"""From a trained network to a checked artifact."""
