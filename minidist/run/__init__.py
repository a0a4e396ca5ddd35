"""The files of a run, and checks of its health."""
