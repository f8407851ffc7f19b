"""From a study's file to its trials."""
