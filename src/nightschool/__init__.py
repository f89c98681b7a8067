"""Nightschool: teach an open language model what you know, on the computer you own."""

__version__ = "0.1.0"
