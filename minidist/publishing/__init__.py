"""A finished model for others: its card, and its way to the Hugging Face hub. Imports no torch."""
