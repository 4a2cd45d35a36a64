"""The noun triggers: jobs that time and events submit."""
