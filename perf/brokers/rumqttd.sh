# How rumqttd is started. Sourced by scripts/brokers.sh, which replaces @...@.
# shellcheck shell=bash disable=SC2034
broker_program=rumqttd
broker_settings=rumqttd.toml
broker_arguments=(--config @SETTINGS@)
