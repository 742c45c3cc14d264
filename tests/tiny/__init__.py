"""Tiny networks, data sets and runs, which the tests import."""
