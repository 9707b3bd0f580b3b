"""Weights: from and to the folders that transformers reads."""
