"""Compares this project with its peers and with the physical limit, interleaved in one run: `python -m bench`.

A work is one thing that people do with a database; an entrant is one way of doing it. `works/` holds a module per work, each
ending in a `WORK`; `catalog` lists them; `measure` runs them; `table`, `plot` and `report` say what came out.
"""
