"""What is put together and where it listens: queen, worker, operator."""
