"""What makes pages of the site from the code: configuration, commands, search spaces, the Python interface, the notebook."""
