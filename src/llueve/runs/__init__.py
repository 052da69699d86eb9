"""The run directory and the trained model in it."""
