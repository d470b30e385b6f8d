"""From an empty AWS account to one that the stack is deployed into."""
