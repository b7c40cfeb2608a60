"""PyTorch programs of strangers: what they may say, read before they are run."""
