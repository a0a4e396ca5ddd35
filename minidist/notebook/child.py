"""The process of a run that was started from Python: the command line, which stops when its caller is gone."""

import os
import signal
import threading

from minidist.cli import main


def _stop_with_caller() -> None:
    """Standard input ends when the caller does, in any way; SIGTERM then stops the run with a checkpoint."""
    while os.read(0, 1024):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    threading.Thread(target=_stop_with_caller, daemon=True).start()
    main()
