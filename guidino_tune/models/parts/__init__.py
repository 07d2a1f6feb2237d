"""Building blocks that several segmenters share."""
