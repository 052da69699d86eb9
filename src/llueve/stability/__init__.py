"""What keeps a non-finite number from reaching the weights, or a report."""
