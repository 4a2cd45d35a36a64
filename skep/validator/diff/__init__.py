"""What is in one trace, checkpoint or snapshot and not in the other."""
