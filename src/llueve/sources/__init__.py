"""Readers: each turns one kind of source into a checked panel."""
