# How NanoMQ is started. Sourced by scripts/brokers.sh, which replaces @...@.
# shellcheck shell=bash disable=SC2034
broker_program=nanomq
broker_settings=nanomq.conf
broker_arguments=(start --conf @SETTINGS@)
