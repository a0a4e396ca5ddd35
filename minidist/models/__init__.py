"""Hugging Face models: found, loaded, run up to their hidden states, adapted, and measured."""
