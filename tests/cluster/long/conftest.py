"""The machines of ``tests/cluster`` are these tests' too."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
