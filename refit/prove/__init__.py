"""The proof on a Triton of its own: what would a client of the released model see?

| module | idea |
|---|---|
| `ways` | how pictures become the model's input: the client's way, and the mistakes that people make |
| `prepare` | `prepare_proof`: a model repository, pictures and request.json, made where numpy and OpenCV are |
| `server` | `prove`: starts tritonserver, asks, keeps the answers; one file of standard library, for any image |
| `answers` | reads them |

`refit.gates.parity` judges them.
"""
