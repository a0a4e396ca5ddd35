"""Teacher-mixed sampling."""
