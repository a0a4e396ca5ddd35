"""Learners: the arithmetic of a step, on plain torch in one process or on DeepSpeed, which must equal it."""
