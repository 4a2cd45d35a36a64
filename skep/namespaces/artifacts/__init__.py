"""Artifacts: bytes by their hash, metadata in the ledger."""
