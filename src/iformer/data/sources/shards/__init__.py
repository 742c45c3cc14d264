"""Tar shards in WebDataset's form."""
