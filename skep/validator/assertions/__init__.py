"""Rules about a trace, written as sentences, and what they are checked on."""
