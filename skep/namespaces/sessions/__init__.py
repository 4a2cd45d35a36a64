"""Sessions: who is attached now; in memory only."""
