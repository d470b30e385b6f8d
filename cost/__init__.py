"""The monthly price of an environment: `make cost`."""
