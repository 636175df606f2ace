"""Fetch one instrument by its key, as an object: the commonest question of all.

Everybody opens what they ask through, reads all eleven columns of one row into an object of their own kind, and closes it.
"""

from bench.works.lookup._entrants import WORK

__all__ = ["WORK"]
