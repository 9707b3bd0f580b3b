"""What a run reports, and what is read from that."""
