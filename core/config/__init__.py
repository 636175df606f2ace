"""Options and settings: values with their defaults, and the same values from the environment."""
