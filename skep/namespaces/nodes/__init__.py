"""Nodes: the machines of the hive."""
