"""The plain training loop, run folders and checkpoints."""
