"""Lets every test import the helpers of this folder as `tests.families` and so on, however pytest is started."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
