"""Pre-training of the weather encoder on the records of many places."""
