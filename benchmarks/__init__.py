"""Contests between this project and its peers; see `python -m benchmarks --help`."""
