"""`swin-moe serve`: a model behind HTTP, with dynamic batches and a page to try it."""
