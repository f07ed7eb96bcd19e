"""Readers of other projects' checkpoints; each yields a graph and its metadata."""
