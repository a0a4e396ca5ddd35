"""Where the roles live: Ray actors, or this process; and what the machine has."""

import os

# A thread that calls Ray after a run has ended would start another cluster. Read when ray is imported.
os.environ.setdefault("RAY_ENABLE_AUTO_CONNECT", "0")
