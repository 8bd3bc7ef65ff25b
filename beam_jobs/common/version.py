"""The distribution's version; setup.py reads it from here."""

__version__ = "0.10.0"
