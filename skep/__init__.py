"""skep: a control plane you mount. A hive of machines served as one tree of files over 9P."""
