"""External programs as objectives: what :func:`objectives.command` is made of."""
