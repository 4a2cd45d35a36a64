"""The served nouns: jobs, nodes, pools, artifacts, log, ctl and the hive that holds them together."""
