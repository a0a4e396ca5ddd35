"""Rollout engines: vLLM, and transformers as the slow reference."""
