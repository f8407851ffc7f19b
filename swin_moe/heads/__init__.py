"""What stands on a backbone, one module a head."""
