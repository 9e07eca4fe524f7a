//! What the black-box tests share: a broker as a real process, and a connection that speaks bytes.
//!
//! A test runs on every combination of I/O backend and number of shards:
//!
//! ```ignore
//! mod support;
//!
//! #[test]
//! fn pings_are_answered() {
//!     support::on_all(|broker| {
//!         let mut wire = broker.connect();
//!         wire.send_hex("10 10 0004 4d515454 04 02 003c 0004 74657374");
//!         wire.expect_hex("20 02 00 00");
//!         wire.send_hex("c0 00");
//!         wire.expect_hex("d0 00");
//!     });
//! }
//! ```
//!
//! Variables: `NOCTULE_TEST_IO` (uring, epoll) and `NOCTULE_TEST_SHARDS` (a number) choose a
//! combination; `NOCTULE_TEST_FAULTS=7:quiet` runs all brokers on a kernel that gives input and output
//! in pieces and late, by seed 7 (`src/io/fault.rs`); `NOCTULE_TEST_BROKER_ADDR` runs the tests against a broker that runs already, which
//! shows whether it is the test that is wrong; `CI` turns a skip into a failure.
#![forbid(unsafe_code)]
// Each test crate uses its part of it; tests wait for a real process on the real clock.
#![allow(dead_code, unused_imports, clippy::disallowed_methods, clippy::print_stdout)]

pub mod broker;
pub mod packets;
pub mod wire;

pub use broker::{
    Broker, Builder, Combination, combinations, free_port, has_faults, on_all, on_all_at_once,
};
pub use wire::{Next, Wire};

/// Notes that a test cannot run here, and why. Call it and return.
///
/// # Panics
/// Under CI, where everything has to run.
pub fn skip(what: &str, why: &str) {
    if std::env::var_os("CI").is_some_and(|ci| !ci.is_empty()) {
        panic!("{what} cannot run: {why}; in CI that is a failure");
    }
    // Past the test harness's capture: a skip has to be seen.
    let line = format!("SKIP {what}: {why}\n");
    let _ = std::io::Write::write_all(&mut std::io::stderr(), line.as_bytes());
}
