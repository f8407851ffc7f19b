"""`swin-moe predict`: what a model says of images in files, folders and shards."""
