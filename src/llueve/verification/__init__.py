"""Judging forecasts as a meteorologist would: scores, the references to beat, and the verdict."""
