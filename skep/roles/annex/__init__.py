"""The annex: a worker whose jobs run on the devices of its machine."""
