"""The web environment on this machine: load balancers, instances and databases that run."""
