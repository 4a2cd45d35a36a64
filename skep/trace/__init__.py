"""What happened and when: clock, entry, ledger, Merkle tree, turn, rings."""
