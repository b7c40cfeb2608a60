"""Fakes of the farm's parts, for testing code that uses or extends it.

They keep the promises of the parts they replace, and fail on demand. Nothing that runs in production
imports them.
"""
