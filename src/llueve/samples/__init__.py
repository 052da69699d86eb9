"""From a panel to the samples of a training."""
