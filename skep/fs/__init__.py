"""9P and the doors into a tree: wire, session, client, tree, chan, server, mount."""
