"""The same two calls, written with each framework, on a table that answers at once.

Every module has `bare(event)`, GET /items/{id}, and `full(event)`, POST /items with validation, one log
line and one metric, as its framework offers them. `KIND` says which event format it takes.
"""
