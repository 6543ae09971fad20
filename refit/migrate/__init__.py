"""`refit import`: a pipeline file made from what the systems that Refit replaces have.

    texts -> secrets taken out (`secrets`) -> what each is (`recognise`) -> facts with their places (`facts`,
    `kubeflow`, `mounts`) -> pipeline file, spec files, scripts (`compose`, `dvc`) -> written whole or not at all

Nothing is guessed in silence: every value in the written file says where it came from, and what the old files say
twice in two ways is left to `refit validate`, which names both places.
"""
