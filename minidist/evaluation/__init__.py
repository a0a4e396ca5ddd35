"""Figures of a model on held-out prompts: accuracy, ROUGE-L, divergence from its teacher, and properties of its text."""
