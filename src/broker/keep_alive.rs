//! Keep Alive (3.1.2.10): whether a client is still heard.
//!
//! Hearing from a client only notes the time; its timer looks, when it is due, whether that is long
//! enough ago. What has arrived and was not read yet counts (SHARDS.md L7), so the shard is asked
//! (`Outputs::silent`) before a client is given up.
#![forbid(unsafe_code)]

use std::time::Duration;

use crate::clock::Time;
use crate::codec::mqtt::{Packet, ReasonCode};
use crate::ids::ConnId;
use crate::limits::INPUT_AGE_COARSE;

use super::timers::Due;
use super::{Broker, Step};

impl Broker {
    /// PINGREQ (3.12).
    pub(super) fn on_pingreq(&mut self, id: ConnId) -> Step {
        self.write(id, &Packet::PingResp);
        Step::Next
    }

    /// The keep alive in force: the client's, within the server's cap.
    pub(super) fn keep_alive_of(&self, asked_secs: u16) -> u16 {
        match self.config.keep_alive_max_secs {
            0 => asked_secs,
            cap if asked_secs == 0 => cap,
            cap => asked_secs.min(cap),
        }
    }

    pub(super) fn arm_keep_alive(&mut self, now: Time, id: ConnId, secs: u16) {
        let Some(conn) = self.conns.get_mut(id) else { return };
        // One and a half times [MQTT-3.1.2-22].
        conn.silence_max_ms = u32::from(secs) * 1500;
        conn.heard = now;
        if secs > 0 {
            let at = now + Duration::from_millis(u64::from(conn.silence_max_ms));
            conn.keep_alive_timer = Some(self.timers.arm(at, Due::KeepAlive(id)));
        }
    }

    /// A client may have been silent for too long; it is asked only now, so that hearing from it
    /// costs nothing.
    pub(super) fn on_keep_alive(&mut self, now: Time, id: ConnId) {
        let Some(conn) = self.conns.get_mut(id) else { return };
        conn.keep_alive_timer = None;
        let silence_max = Duration::from_millis(u64::from(conn.silence_max_ms));
        // While we do not read it, it cannot be heard (SHARDS.md L7).
        if conn.is_held() {
            conn.heard = now;
        }
        let at = conn.heard + silence_max;
        if at > now {
            conn.was_spared = false;
            conn.keep_alive_timer = Some(self.timers.arm(at, Due::KeepAlive(id)));
            return;
        }
        self.out.silent.push(id);
    }

    /// It was not heard for too long; `age` ago something of it has arrived, read or not. What a
    /// shard that was busy has not read yet counts (SHARDS.md L7): it is given time to be read, once,
    /// so that a client that never ends a packet is not kept by its single bytes.
    pub(super) fn on_silence(&mut self, now: Time, id: ConnId, age: Duration) {
        let Some(conn) = self.conns.get_mut(id) else { return };
        let arrived = now - age;
        if arrived > conn.heard + INPUT_AGE_COARSE && !conn.was_spared {
            conn.was_spared = true;
            let at = now + Duration::from_millis(u64::from(conn.silence_max_ms / 4));
            conn.keep_alive_timer = Some(self.timers.arm(at, Due::KeepAlive(id)));
            return;
        }
        self.stats.keep_alive_timeouts += 1;
        let _ = self.disconnect(now, id, ReasonCode::KEEP_ALIVE_TIMEOUT);
    }
}
