"""Published methods: one YAML file each, and the code of those that need any."""
