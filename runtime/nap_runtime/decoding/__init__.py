"""Pure decoding logic: layouts, schedules, rules, records and the coordination state machine.

Knows torch and numpy, and nothing of processes, networks or Ray.
"""
