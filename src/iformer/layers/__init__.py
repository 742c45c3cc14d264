"""Layers: one operation a file."""
