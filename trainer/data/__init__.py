"""Which pictures come when, and as what: datasets, their order, preprocessing and augmentation."""
