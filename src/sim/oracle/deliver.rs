//! Judges each message that comes to a client.
#![forbid(unsafe_code)]

use super::will::judge_will;
use super::{Message, Oracle, Subscription};
use crate::clock::Time;
use crate::codec::mqtt::{Publish, QoS, RetainHandling};
use crate::sim::network::{Network, now};

/// A PUBLISH at a client.
#[derive(Debug)]
pub struct Arrival<'a> {
    /// Whose.
    pub client: usize,
    /// On which connection.
    pub link: usize,
    /// With its topic, if it came by alias.
    pub publish: Publish<'a>,
    /// QoS 2, and the client has this packet id already: it takes no further notice.
    pub repeats: Option<u64>,
}

/// The payload of a message: its number, then bytes that follow from it.
pub fn payload(id: u64, len: usize) -> Vec<u8> {
    let number = id.to_be_bytes().into_iter();
    number.chain((8..len.max(8)).map(|i| (id as usize * 31 + i) as u8)).collect()
}

/// The message that a payload names.
pub fn number(payload: &[u8]) -> Option<u64> {
    Some(u64::from_be_bytes(payload.get(..8)?.try_into().ok()?))
}

impl Oracle {
    /// A message has come; its number.
    pub fn on_arrival(&mut self, arrival: &Arrival<'_>, network: &Network) -> Option<u64> {
        let Arrival { client, publish, .. } = arrival;
        let name = |what: &str| format!("client {client}, {}: {what}", publish.topic);
        if publish.payload.is_empty() {
            if !self.cleared.contains(publish.topic) {
                self.fail("unknown", name("an empty message that nobody sent"));
            }
            return None;
        }
        let id = number(publish.payload)?;
        if let Some(had) = arrival.repeats {
            if had != id || !publish.dup {
                let text = name(&format!("message {id} under the packet id of {had}, in use"));
                self.fail("packet-id", text);
            }
            return Some(id);
        }
        let Some(message) = self.messages.get(&id) else {
            self.fail("unknown", name("a message that nobody sent"));
            return None;
        };
        let judged = judge_will(message, network).and_then(|()| self.judge(arrival, id, message));
        if let Err((rule, text)) = judged {
            let text = format!("client {client}, message {id} on {}: {text}", publish.topic);
            self.fail(rule, text);
        }
        if message_is_suspect(&self.messages[&id]) {
            self.suspects.push(id);
        }
        self.count(arrival, id);
        if let Some((auditor, values)) = &mut self.audit
            && *auditor == arrival.client
            && arrival.publish.retain
        {
            values.insert(arrival.publish.topic.to_owned(), id);
        }
        Some(id)
    }

    fn judge(
        &self,
        arrival: &Arrival<'_>,
        id: u64,
        message: &Message,
    ) -> Result<(), (&'static str, String)> {
        let publish = &arrival.publish;
        let session = &self.clients[arrival.client].session;
        if message.topic != publish.topic || payload(id, message.len) != publish.payload {
            return Err(("corrupt", format!("it was for {}", message.topic)));
        }
        let lasts = self.terms.durable
            && (message.qos > QoS::AtMostOnce || message.retain || message.will.is_some());
        if message.life < self.life && !lasts {
            return Err(("resurrected", "it was lost with the broker's memory".to_owned()));
        }
        let all = session.subscriptions.iter().filter(|s| s.wants(publish.topic));
        let may: Vec<&Subscription> =
            all.filter(|s| s.ended.is_none_or(|at| at >= message.sent)).collect();
        if may.is_empty() {
            return Err(("unsubscribed", "no subscription wants it".to_owned()));
        }
        let asked = || may.iter().flat_map(|s| &s.asked);
        let qos = |of: QoS| of.min(message.qos);
        let highest = asked().map(|a| qos(a.options.qos)).max();
        let lowest = asked().map(|a| qos(a.options.qos)).min();
        if Some(publish.qos) > highest || Some(publish.qos) < lowest {
            let text = format!("{:?}, granted {lowest:?} to {highest:?}", publish.qos);
            return Err(("qos", text));
        }
        let own = message.client == arrival.client && message.will.is_none();
        if own && asked().all(|a| a.options.no_local) {
            return Err(("no-local", "it is its own".to_owned()));
        }
        let as_published = asked().any(|a| a.options.retain_as_published);
        let replays: u32 = may.iter().map(|s| s.replays()).sum();
        if publish.retain && !message.retain {
            return Err(("retain-flag", "it was not retained".to_owned()));
        }
        if publish.retain && !as_published && replays == 0 {
            return Err(("retain-flag", "live, and no Retain As Published".to_owned()));
        }
        if message.refused && !message.resent {
            return Err(("refused-came", "its publisher was told that it is not taken".to_owned()));
        }
        self.judge_expiry(arrival, message)?;
        judge_ids(publish, &may)?;
        if !may.iter().any(|s| s.share.is_some()) {
            self.judge_copies(arrival, id, message, &may)?;
            self.judge_order(arrival, id, message, &may)?;
        }
        Ok(())
    }

    /// Whoever waited for it, the broker has sent it after this connection's CONNECT.
    fn judge_expiry(
        &self,
        arrival: &Arrival<'_>,
        message: &Message,
    ) -> Result<(), (&'static str, String)> {
        let state = &self.clients[arrival.client];
        let asked = state.link.map_or(Time::ZERO, |current| current.asked);
        let left = arrival.publish.properties.message_expiry_interval;
        let Some(expiry) = message.expiry else {
            return match left {
                Some(left) => Err(("expiry", format!("{left} s left of for ever"))),
                None => Ok(()),
            };
        };
        // What was sent in time may be sent again when its time is over.
        if arrival.publish.dup {
            return Ok(());
        }
        let passed = message.acked.map_or(0, |acked| asked.since(acked).as_secs());
        if passed > u64::from(expiry) {
            return Err(("expiry", format!("expired {} s before", passed - u64::from(expiry))));
        }
        if let Some(left) = left {
            let elapsed = now().since(message.sent).as_secs();
            let (left, expiry) = (u64::from(left), u64::from(expiry));
            if left > expiry - passed || left + elapsed + 1 < expiry {
                let text = format!("{left} of {expiry} s left, {passed} to {elapsed} s later");
                return Err(("expiry", text));
            }
        }
        Ok(())
    }

    /// At most once, or as often as it was published.
    fn judge_copies(
        &self,
        arrival: &Arrival<'_>,
        id: u64,
        message: &Message,
        may: &[&Subscription],
    ) -> Result<(), (&'static str, String)> {
        let state = &self.clients[arrival.client];
        let publish = &arrival.publish;
        let began = state.link.and_then(|current| current.began);
        let none = super::Seen::default();
        let seen = state.session.seen.get(&id).unwrap_or(&none);
        let before = publish.packet_id.and_then(|id| seen.ids.get(&id.get()));
        if publish.dup {
            if before == Some(&arrival.link) {
                return Err(("dup", "sent again on the same connection".to_owned()));
            }
            if seen.copies == 0 && began.is_some_and(|began| message.sent > began) {
                return Err(("dup", "DUP on its first delivery".to_owned()));
            }
            if before.is_some() {
                return Ok(());
            }
        }
        let replays: u32 = may.iter().map(|s| s.replays()).sum();
        // Of the first SUBSCRIBE of a subscription, the replay is instead of what came before it.
        let replays_first =
            |asked: &super::Asked| asked.options.retain_handling != RetainHandling::DoNotSend;
        let first_is_either = may.iter().all(|s| s.asked.first().is_some_and(replays_first));
        let replays =
            if message.retain { replays.saturating_sub(u32::from(first_is_either)) } else { 0 };
        // What its client had at less than QoS 2 comes again after a crash, or is sent again: at QoS 2
        // too, where its subscription was lowered behind the message's record.
        let lives = 1 + self.life - message.first_life;
        let is_exact = publish.qos == QoS::ExactlyOnce;
        if seen.copies >= message.transmissions * lives + replays
            || (is_exact && seen.exact >= message.transmissions + replays)
        {
            let text = format!(
                "copy {} of {} published, {replays} replays more",
                seen.copies + 1,
                message.transmissions
            );
            return Err(("twice", text));
        }
        Ok(())
    }

    /// Per publisher, topic and QoS; and never an older retained value after a newer.
    fn judge_order(
        &self,
        arrival: &Arrival<'_>,
        id: u64,
        message: &Message,
        may: &[&Subscription],
    ) -> Result<(), (&'static str, String)> {
        let session = &self.clients[arrival.client].session;
        let publish = &arrival.publish;
        if message.transmissions > 1 || message.will.is_some() || session.seen.contains_key(&id) {
            return Ok(());
        }
        // What was refused, without its client knowing, comes again behind what was not.
        if self.may_refuse() && message.resent {
            return Ok(());
        }
        // When it was sent first nobody may have wanted it for long, so that nothing of it was there
        // when the broker ended; what was sent behind it was wanted, and was.
        let was_wanted = |s: &&Subscription| s.held.is_some_and(|held| held < message.sent);
        let was_early = message.first_life < message.life && message.resent && !message.retain;
        if was_early && !may.iter().any(was_wanted) {
            return Ok(());
        }
        let stream = stream(message, publish.qos);
        let is_newer = |newest: &&u64| {
            **newest > id && self.is_before(message.link, self.messages[*newest].link)
        };
        if !publish.retain
            && let Some(newer) = session.newest.get(&stream).filter(is_newer)
        {
            return Err(("disorder", format!("after {newer} of the same publisher")));
        }
        if message.retain
            && let Some(newer) = session.newest_retained.get(&stream).filter(is_newer)
        {
            return Err(("outdated", format!("after {newer}, both retained")));
        }
        Ok(())
    }

    fn count(&mut self, arrival: &Arrival<'_>, id: u64) {
        let publish = &arrival.publish;
        let Some(message) = self.messages.get_mut(&id) else { return };
        let session = &mut self.clients[arrival.client].session;
        let seen = session.seen.entry(id).or_default();
        let packet_id = publish.packet_id.map(|id| id.get());
        let is_again = packet_id.is_some_and(|id| seen.ids.insert(id, arrival.link).is_some());
        let is_new = !(publish.dup && is_again);
        seen.copies += u32::from(is_new);
        seen.exact += u32::from(is_new && arrival.publish.qos == QoS::ExactlyOnce);
        let by_group = |s: &Subscription| s.share.is_some() && s.wants(publish.topic);
        let is_shared = session.subscriptions.iter().any(by_group);
        message.shared_copies += u32::from(is_new && is_shared);
        if message.will.is_none() && !publish.dup {
            let stream = stream(message, publish.qos);
            if message.retain {
                let newest = session.newest_retained.entry(stream.clone()).or_default();
                *newest = id.max(*newest);
            }
            if !publish.retain {
                let newest = session.newest.entry(stream).or_default();
                *newest = id.max(*newest);
            }
        }
    }
}

fn stream(message: &Message, delivered: QoS) -> super::Stream {
    (message.client, message.topic.clone(), message.qos as u8, delivered as u8)
}

/// Subscription identifiers are those of the subscriptions that want it.
fn judge_ids(publish: &Publish<'_>, may: &[&Subscription]) -> Result<(), (&'static str, String)> {
    let ids: Vec<u32> = publish.properties.subscription_ids.iter().collect();
    let asked = || may.iter().flat_map(|s| &s.asked);
    if let Some(foreign) = ids.iter().find(|id| asked().all(|a| a.id != Some(**id))) {
        return Err(("identifier", format!("{foreign} is not of a subscription that wants it")));
    }
    if ids.is_empty() && asked().all(|a| a.id.is_some()) {
        return Err(("identifier", "it has none".to_owned()));
    }
    Ok(())
}

fn message_is_suspect(message: &Message) -> bool {
    message.will.as_ref().is_some_and(|will| will.disconnected && !will.unsure)
}
