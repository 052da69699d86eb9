"""Gridded archives: ERA5 and its relatives."""
