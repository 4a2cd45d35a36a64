"""Dead letters: the jobs that have failed, as files. What they are is in jobs/letters.py."""
