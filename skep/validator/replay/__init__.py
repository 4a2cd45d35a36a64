"""Would today's rules decide as it is recorded? Every line of a ledger again, under another policy too."""
