"""Benchmarks: latency and energy of networks and artifacts, compared side by side."""
