"""Checkpoints: written, found and read."""
