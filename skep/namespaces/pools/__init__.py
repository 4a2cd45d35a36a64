"""Pools: where the jobs of a topic wait, and which nodes take them."""
