"""The network under training: device, precision, EMA, sharding."""
