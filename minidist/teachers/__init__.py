"""Teachers: frozen models that score given tokens and write text."""
