"""Sources on loopback: a real S3 API (moto), an HTTPS server whose certificate an own authority signed.

They need the environment `s3` (`sh bin/setup s3`, which `make test` does); without it their tests say that they skip.
"""
