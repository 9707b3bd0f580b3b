"""What a run would take, said before it starts and without a GPU."""
