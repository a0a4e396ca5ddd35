"""Hugging Face models: found, loaded, run up to their hidden states, and adapted."""
