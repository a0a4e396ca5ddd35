"""From a configuration to the objects that work."""
