"""NVIDIA TAO: networks as data, specs as trees, and what is checked before a GPU is touched.

`networks` reads specs/networks/<name>/network.yaml, `tree` reads and changes a spec in either of TAO's formats,
`render` turns a pipeline into command lines and specs, `preflight` holds the specs against NVIDIA's schemas, against
each other and against the data. `refit.toolkits.tao` makes stages of it.
"""
