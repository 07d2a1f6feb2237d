"""Data: where cases come from, how they are split, decoded, augmented and served. The test split is sealed (see ``sealed.py``)."""
