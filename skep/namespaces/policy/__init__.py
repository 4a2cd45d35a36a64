"""What may be done now: Cedar policies in signed bundles, asked for every command."""
