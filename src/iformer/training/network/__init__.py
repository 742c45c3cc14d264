"""Preparation of a network for training: device, precision, EMA, sharding, faster layers."""
