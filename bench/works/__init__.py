"""The works: a module each, with its entrants and, at its end, its `WORK`."""
