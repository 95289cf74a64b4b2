"""Films for training: readers of folders, splits, cache, augmentation and batches."""
