//! Signals, as events of the control thread.
#![forbid(unsafe_code)]

use std::io;
use std::sync::mpsc::Sender;
use std::thread;

use signal_hook::consts::{SIGINT, SIGTERM, SIGUSR1};
use signal_hook::iterator::Signals;

use super::control::Event;

/// What a signal asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// SIGTERM or SIGINT, by number: stop; a second time: exit at once.
    Stop(i32),
    /// SIGUSR1: report all counters.
    Report,
}

/// From now on signals are sent to `events` instead of ending the process.
///
/// # Errors
/// When the kernel refuses a handler or the thread that waits for them.
pub fn watch(events: Sender<Event>) -> io::Result<()> {
    let mut signals = Signals::new([SIGTERM, SIGINT, SIGUSR1])?;
    thread::Builder::new().name("signals".to_owned()).spawn(move || {
        for signal in signals.forever() {
            let request = if signal == SIGUSR1 { Request::Report } else { Request::Stop(signal) };
            if events.send(Event::Signal(request)).is_err() {
                return;
            }
        }
    })?;
    Ok(())
}
