"""What an engine is worth: how like its source it is, whether that is enough, and how fast it runs."""
