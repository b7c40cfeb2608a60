"""Flower for the farm's users: read-only, corrected by the database, linked to the farm's pages."""
