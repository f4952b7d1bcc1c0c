"""Frozen configs of every section of a recipe."""
