"""Runs in the environment `s3`: moto's server on a free port of loopback, until standard input ends."""

from __future__ import annotations

import logging
import sys

from moto.server import ThreadedMotoServer

logging.disable(logging.INFO)
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
sys.stdin.read()
server.stop()
