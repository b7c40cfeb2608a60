"""What keys may use of the farm, and what they use: told, and held to."""
