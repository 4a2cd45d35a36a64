"""Is a log what it was? Where its entries and hashes come from, and what can be found wrong with them."""
