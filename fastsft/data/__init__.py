"""The data rooms: rows in, labelled token arrays out.  No torch, no transformers, no datasets."""
