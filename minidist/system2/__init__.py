"""System 2: programs of several calls of a model, and filters that keep the answers on which they agree.

The answers that are kept train the model to give them at once: System 2 distillation (Yu et al., arXiv:2407.06023).
"""
