"""The pipelines; each node unpacks, calls and returns."""
