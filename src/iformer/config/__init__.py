"""Configs: what a network, its preprocessing, its metadata and its training are. No torch."""
