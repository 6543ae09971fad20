"""Batch inference: a folder or bucket of images -> what a model finds in them, in files.

    specs     what the stage is told
    images    where the images lie, and their bytes
    pictures  from bytes to pixels, whole or refused
    journal   an answer for each image, kept as it comes: what a killed run has done is not done again
    work      images through a model: several at once, never more than memory holds
    triton    a model that Triton serves, one version from the first image to the last
    results   the files that people and programs read, made from the journal
    stage     the stage command `inference`
    request   the stage that Airflow runs
    cli       `refit predict`

`refit.cpu.inference` is the same with the model's own file, in the cpu environment; only `pictures`, `triton` and `cli`
need the tools environment.
"""
