"""The demonstration: deploys the stack on this machine and exercises all of it (`make demo`)."""
