"""A whole farm under a seeded storm of crashes: ``make chaos``; a short one in ``make test``."""
