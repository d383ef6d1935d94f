"""What Countersign costs, measured: `make bench`."""
