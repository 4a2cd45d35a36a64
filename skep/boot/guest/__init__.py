"""The project's own images: small kernels and root tasks that say, and do wrong, what seL4's do."""
