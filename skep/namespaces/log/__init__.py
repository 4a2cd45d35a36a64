"""The trace as files: the ledger read and followed."""
