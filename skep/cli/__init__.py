"""The commands of ``skep``: what a person types. ``__main__`` has the table of them."""
