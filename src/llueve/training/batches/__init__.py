"""The batches of an epoch: order, preparation, cached features."""
