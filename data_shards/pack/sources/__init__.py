"""What can be packed: folders, ImageNet's releases, zips, Fashion-MNIST, shards."""
