"""Effects: files, network, process groups, randomness and logs."""
