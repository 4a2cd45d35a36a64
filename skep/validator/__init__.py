"""Does the ledger tell the truth?"""
