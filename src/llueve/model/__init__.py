"""The Timer-XL and Timer encoders, and the heads that make classifiers of them."""
