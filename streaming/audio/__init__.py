"""Samples from bytes: codecs, containers, resampling."""
