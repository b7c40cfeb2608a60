"""The registry as OCI clients see it."""
