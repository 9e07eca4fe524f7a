# How Mosquitto is started where it is to keep things. Sourced by scripts/brokers.sh, which replaces @...@.
# shellcheck shell=bash disable=SC2034
broker_program=mosquitto
broker_settings=mosquitto.conf
broker_arguments=(-c @SETTINGS@)
