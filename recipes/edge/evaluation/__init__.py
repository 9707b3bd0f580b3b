"""Questions to a trained model, and the scores of its answers."""
