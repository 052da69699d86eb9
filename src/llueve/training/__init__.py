"""Training: one loop, watched by the guard."""
