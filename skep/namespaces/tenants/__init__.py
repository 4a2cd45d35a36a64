"""/tenants: what each tenant may have of the hive, and what it has."""
