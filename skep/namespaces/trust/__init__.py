"""Trust: the hive's CA, who was given a certificate, and what was taken back."""
