"""The command `panda`."""
