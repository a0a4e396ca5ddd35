"""Learners: plain torch in one process, and DeepSpeed, which must equal it."""
