"""Where a training begins: weights of one's own, of another run, of the version that serves, or a training that was
stopped and is gone on with (docs/own-model.md).

    spec     what `stages.train.start_from` may say; standard library and pydantic, Airflow parses with it
    foreign  a file that somebody else made, looked at without running anything in it
    take     bind's part: finds it, fetches it, and keeps it in the workspace by its content
"""
