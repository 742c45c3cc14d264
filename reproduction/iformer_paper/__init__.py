"""The tables, figures and ablations of the paper (arXiv 2501.15369)."""
