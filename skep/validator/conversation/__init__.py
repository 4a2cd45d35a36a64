"""Recorded 9P conversations, played again."""
