"""Fakes of the farm's parts, for the tests of whoever uses or extends it.

They keep the promises of what they stand for, and fail on demand. Nothing of the farm that runs imports
them.
"""
