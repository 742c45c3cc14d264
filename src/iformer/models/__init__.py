"""Networks, weights, folding and counting."""
