"""Published checkpoints: read, inspect and write them."""
