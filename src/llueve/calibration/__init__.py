"""Calibrated probabilities and the threshold of a decision, both fitted on the validation period."""
