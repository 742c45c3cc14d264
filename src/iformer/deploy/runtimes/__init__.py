"""Export to each runtime and its runner, one module per runtime."""
