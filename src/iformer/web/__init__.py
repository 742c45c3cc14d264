"""A web page that runs a network in the browser of a phone: its server, its files, and benchmarks on it."""
