"""`swin-moe study`: a grid of runs, trained, evaluated and reported on."""
