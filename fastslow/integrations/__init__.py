"""Training loops of others that run the method; each needs its own package."""
