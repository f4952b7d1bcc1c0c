"""Tables, figures and output files."""
