"""A teacher behind an OpenAI-style vLLM server."""
