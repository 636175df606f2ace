"""Topologies and faults: what stands between a client and a server."""
