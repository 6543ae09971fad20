"""Edge bundles: the exported model in the forms that small devices and browsers take (docs/edge.md).

Each kind is a stage of its own that converts, an evaluation of what came out, and a gate on it; `bundle` gathers them.
"""
