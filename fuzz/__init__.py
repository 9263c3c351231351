"""Fuzz targets: each parser of bytes that somebody else wrote. `README.md` says how to run them."""
