"""Triton: a local server, model configuration, a client, and releases that cannot hurt what serves.

| module | idea |
|---|---|
| `installation`, `server` | a real tritonserver on loopback without root, container or GPU (standard library only) |
| `model` | what a version is: an ONNX file, or TensorRT plans |
| `config` | config.pbtxt from the ONNX file itself, or from engine.json |
| `client` | what a release and a user ask of a server, with typed errors |
| `repository`, `bucket`, `ledger`, `lock` | the model repository (a folder, a bucket), what was released, one lock |
| `reference`, `proof` | what a model must answer, and the proof that a server answers so |
| `fleet`, `proven` | every server behind one address, and what holds when they come and go |
| `artefact`, `champion` | the model that is released; what serves before it |
| `transaction`, `release`, `rollback` | the crash-safe change of a champion |
| `canary`, `shadow`, `route` | a challenger under a name of its own, asked the same as the champion |
| `watch`, `traffic` | the time after a swap in which going back takes less than a second |
| `stage`, `infer` | the stage command; one picture answered by a server |
| `serving` | is a release still what serves? |

What the server does in each case was measured; `docs/contracts.md` and the modules' docstrings carry the facts.
"""
