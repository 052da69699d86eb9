"""Downloads from the Climate Data Store and Open-Meteo."""
