"""Text to prompts, answers and corpora; rollouts and answers to batches."""
