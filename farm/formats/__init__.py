"""What is read of strangers' files without a framework."""
