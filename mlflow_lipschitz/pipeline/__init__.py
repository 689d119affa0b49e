"""The steps between a pulled model and a verdict that belong to no other package; `audit.py` puts them in order."""
