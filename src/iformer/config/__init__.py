"""Configs of networks, preprocessing, metadata and training. No module here imports torch."""
