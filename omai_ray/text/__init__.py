"""Text to tokens and back, free of torch: the same code counts at the edge and runs in replicas."""
