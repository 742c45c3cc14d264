"""A web page that runs a network in a browser, for example on a phone: its files, its server, and benchmarks."""
