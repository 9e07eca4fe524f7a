# How NATS is started. Sourced by scripts/brokers.sh, which replaces @...@.
# shellcheck shell=bash disable=SC2034
broker_program=nats-server
broker_settings=nats.conf
broker_arguments=(--config @SETTINGS@)
broker_environment=(GOMAXPROCS=1)
