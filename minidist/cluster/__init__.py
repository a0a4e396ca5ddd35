"""Where the roles live: Ray actors, or this process; and what the machine has."""
