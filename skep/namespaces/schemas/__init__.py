"""JSON Schemas by id and version, and what documents they are asked about."""
