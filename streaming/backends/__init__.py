"""Recognisers, each behind the interface of `base`. Heavy libraries are imported inside the file that needs them."""
