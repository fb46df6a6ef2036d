"""The pages of the catalogue, made from cards, docstrings, drawings and stored results."""
