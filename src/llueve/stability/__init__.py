"""Checks, diagnosis and remedies that keep non-finite numbers out of the weights and the reports."""
