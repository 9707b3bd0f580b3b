"""What happens to a model before it trains, and to its gradients in each step."""
