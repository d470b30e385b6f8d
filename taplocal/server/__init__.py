"""What runs in MiniStack's process, and makes it behave as AWS does: a module for each subject."""
