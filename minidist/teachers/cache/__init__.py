"""A teacher's scores on disk."""
