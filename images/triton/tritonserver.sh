#!/bin/sh
# tritonserver: the server of the nvidia-pytriton wheel, with its libraries and the environment of its Python stub.
#
# The variables are set here and not in the image, because other programs must not load the wheel's libraries.
site=/opt/refit/envs/triton/lib/python3.11/site-packages
export LD_LIBRARY_PATH="/opt/tritonserver/lib:$site/nvidia_pytriton.libs${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
# The stub takes its packages from the first python3, and must not see those of others.
export PATH="/opt/refit/envs/triton/bin:$PATH"
unset PYTHONPATH PYTHONHOME
exec "$site/pytriton/tritonserver/bin/tritonserver" "$@"
