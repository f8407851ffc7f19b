"""`swin-moe bench predict` and `bench serve`: times of a model, and of a server under load."""
