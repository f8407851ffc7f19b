"""How the members of a sample are encoded, checked and decoded."""
