"""Export of trained networks to runtimes, with a check of every artifact."""
