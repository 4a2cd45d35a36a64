"""GPUs: the devices of annexes, who holds how much of them, and what is asked of them."""
