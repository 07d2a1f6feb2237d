"""Tables and figures from plain rows of results; nothing here trains, and nothing here needs torch or Ray."""
