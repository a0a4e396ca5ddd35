"""The type of every array that travels."""

from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]
