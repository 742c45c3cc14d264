"""The network under training: device, precision, average, sharding."""
