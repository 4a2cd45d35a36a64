"""Tokens: capabilities that narrow the session they are presented to."""
