"""What people look at: an index per pipeline, a report per run, pictures (docs/contracts.md, "Published").

`place` names the files and needs the standard library only; `gather` reads a run, `index` keeps the pipeline's index,
`stage` writes both.
"""
