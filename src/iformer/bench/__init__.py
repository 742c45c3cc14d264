"""Timing and comparison."""
