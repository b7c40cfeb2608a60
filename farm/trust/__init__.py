"""Whom the farm trusts."""
