"""A search on recorded curves: the real driver under a virtual clock."""
