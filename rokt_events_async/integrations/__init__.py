"""One module for each framework, and the only one to import it."""
