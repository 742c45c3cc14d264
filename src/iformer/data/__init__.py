"""Reading of images and data sets, transforms, and batches for training."""
