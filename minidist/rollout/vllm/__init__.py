"""vLLM as writer and as scorer."""
