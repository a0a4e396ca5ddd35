"""minidist: on-policy distillation of language models. Importing it loads nothing heavy."""

__version__ = "0.1.0"
