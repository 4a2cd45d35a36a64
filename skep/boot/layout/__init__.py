"""What is in a boot file, and whether it is as its kind has to be."""
