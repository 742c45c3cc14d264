"""Networks, their weights, folding and complexity."""
