"""The laboratory: a grid of benches, and what their result files say.  Measures through fastsft."""
