"""The Timer-XL encoder and the heads that turn it into a classifier."""
