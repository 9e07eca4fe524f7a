# How FlashMQ is started where it is to keep things. Sourced by scripts/brokers.sh, which replaces @...@.
# shellcheck shell=bash disable=SC2034
broker_program=flashmq
broker_settings=flashmq.conf
broker_arguments=(--config-file @SETTINGS@)
