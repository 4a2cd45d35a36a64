"""A whole hive in one thread, its time, its network and its disk made up from one seed."""
