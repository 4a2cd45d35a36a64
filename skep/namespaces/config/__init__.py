"""Configuration: documents of scopes, merged, each value with its source."""
