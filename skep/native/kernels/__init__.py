"""The kernels of the annex: a table of them, each with its CPU twin and its way onto a device."""
