"""Layers: one operation per file."""
