"""The report on a data set: one HTML page that needs nothing else, and the same as JSON.

`contents` gathers what it says, `page` writes it, with `charts`, `pictures` and `markup`.
"""
