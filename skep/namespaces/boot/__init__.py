"""The noun boot: images and what became of booting them in the lab; how this hive itself began."""
