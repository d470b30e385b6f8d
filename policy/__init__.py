"""A Pulumi policy pack: the security rules of the stack, checked before a deployment."""
