"""Fast, exact building blocks of the encoders."""
