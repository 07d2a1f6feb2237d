"""The report of a study: one file that tells a stranger what was searched, what came of it, and how to repeat it.

``material`` collects what is stored, the sections say it in blocks of ``document``, and ``page`` and ``markdown`` write these down. Charts
are SVG that we draw ourselves (``svg``): some hundred lines, crisp on paper, readable without JavaScript and a few kilobytes each. A
library that draws in the browser would add a megabyte to every file, and another dependency.
"""
