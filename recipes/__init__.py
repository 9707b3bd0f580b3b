"""Complete trainings, each one readable file."""
