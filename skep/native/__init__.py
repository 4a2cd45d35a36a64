"""Kernels in C (cffi), each beside a pure-Python twin of equal meaning."""
