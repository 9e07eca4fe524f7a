# How EMQX 5 is started. Sourced by scripts/brokers.sh, which replaces @...@: loopback only, no
# dashboard, TCP_NODELAY on, one scheduler as the others have one thread, nothing retained on disk.
# shellcheck shell=bash disable=SC2034
broker_program=emqx
broker_settings=
broker_arguments=(foreground)
broker_environment=(
    EMQX_LISTENERS__TCP__DEFAULT__BIND=127.0.0.1:@PORT@
    EMQX_LISTENERS__TCP__DEFAULT__TCP_OPTIONS__NODELAY=true
    EMQX_LISTENERS__SSL__DEFAULT__ENABLE=false
    EMQX_LISTENERS__WS__DEFAULT__ENABLE=false
    EMQX_LISTENERS__WSS__DEFAULT__ENABLE=false
    EMQX_DASHBOARD__LISTENERS__HTTP__BIND=0
    EMQX_MQTT__MAX_MQUEUE_LEN=65535
    EMQX_MQTT__MAX_INFLIGHT=65535
    EMQX_NODE__DATA_DIR=@WORK@
    EMQX_LOG__CONSOLE__LEVEL=error
    ERL_FLAGS="+S 1:1"
)
