#!/bin/bash
# As the official image: bash, python and airflow are commands, other words are airflow's.
case "${1:-}" in
  bash | python | airflow | /*) exec "$@" ;;
  *) exec airflow "$@" ;;
esac
