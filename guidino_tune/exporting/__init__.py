"""Trained models in the formats of other programs, which run them without this package."""
