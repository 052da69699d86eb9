"""One training or prediction step."""
