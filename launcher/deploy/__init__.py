"""`swin-moe deploy`: a trained model as a folder that runs elsewhere, and whatever runs it."""
