"""What a ledger proves of the work that asked for a GPU."""
