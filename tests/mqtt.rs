//! MQTT as a client sees it: a real broker process, raw packets, on io_uring and on epoll, with one
//! shard and with two. Files are named by packet; a rule of the specification is cited by its
//! number, of 5.0 where nothing else is said.
//!
//! What must *not* arrive is proven by what comes behind it on the same way: a publisher's next
//! message, or the answer to a ping. Sleeping is for what only time brings about.
#![forbid(unsafe_code)]
// Tests wait for a real process on the real clock.
#![allow(clippy::disallowed_methods, clippy::print_stdout)]

#[path = "mqtt/alias.rs"]
mod alias;
#[path = "mqtt/answers.rs"]
mod answers;
#[path = "mqtt/authentication.rs"]
mod authentication;
#[path = "mqtt/capabilities.rs"]
mod capabilities;
#[path = "mqtt/connack.rs"]
mod connack;
#[path = "mqtt/connect.rs"]
mod connect;
#[path = "mqtt/disconnect.rs"]
mod disconnect;
#[path = "mqtt/expiry.rs"]
mod expiry;
#[path = "mqtt/flow_control.rs"]
mod flow_control;
#[path = "mqtt/limits.rs"]
mod limits;
#[path = "mqtt/logging.rs"]
mod logging;
#[path = "mqtt/logs.rs"]
mod logs;
#[path = "mqtt/malformed.rs"]
mod malformed;
#[path = "mqtt/notation.rs"]
mod notation;
#[path = "mqtt/pairs.rs"]
mod pairs;
#[path = "mqtt/publish.rs"]
mod publish;
#[path = "mqtt/qos.rs"]
mod qos;
#[path = "mqtt/retained.rs"]
mod retained;
#[path = "mqtt/robustness.rs"]
mod robustness;
#[path = "mqtt/session.rs"]
mod session;
#[path = "mqtt/shared.rs"]
mod shared;
#[path = "mqtt/strategies.rs"]
mod strategies;
#[path = "mqtt/subscribe.rs"]
mod subscribe;
mod support;
#[path = "mqtt/takeover.rs"]
mod takeover;
#[path = "mqtt/v31.rs"]
mod v31;
#[path = "mqtt/versions.rs"]
mod versions;
#[path = "mqtt/will.rs"]
mod will;
