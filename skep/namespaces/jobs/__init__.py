"""Jobs: work submitted, leased to nodes, ended exactly once."""
