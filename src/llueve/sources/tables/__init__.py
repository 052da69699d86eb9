"""Tables of stations: CSV, Parquet, GHCN-Daily, Open-Meteo."""
