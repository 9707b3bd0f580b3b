"""A training step once more, in loops: from the row of a data file to its gradients."""
