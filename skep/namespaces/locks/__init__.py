"""Locks: exclusive and shared, for a time, with fences."""
