"""The noun validator: what the hive's auditors have verified and replayed, by machines of that role."""
