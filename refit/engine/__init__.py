"""TensorRT engines: built, described, matched with the server that is to run them, packaged.

| module | idea |
|---|---|
| `record` | engine.json beside every plan, cal.json beside every calibration cache |
| `plan` | what a plan file says by itself: the TensorRT that built it |
| `gpu` | the GPU that builds: asked from the driver, or noted by a command in somebody else's image |
| `pictures`, `cache` | INT8 calibration: which images, in which batches; when an old cache may be used |
| `builder`, `build` | Refit's own builder, for TensorRT 10 and 11 |
| `describe` | engine.json for a plan that another program built (TAO's gen_trt_engine) |
| `match` | does a plan fit a Triton release and a GPU? |
| `deepstream`, `package` | what is deployed: the files of a release, and the DeepStream bundle |

`build` runs in an image that has `tensorrt` (images/tensorrt); everything else needs neither it nor a GPU.
"""
