//! A publication as it stands in outboxes: encoded once per variant, and copied.
//!
//! Variants differ by version, QoS, retain flag, and by how the topic is named (its name, name and
//! Topic Alias, alias alone); packet id and alias are patched in each copy. Subscription
//! Identifiers are of one receiver, so that variant is encoded each time.
//!
//! Owns the buffers of the publication in hand. Invariant: a variant is used only for the
//! publication for which it was encoded, told by its serial.
#![forbid(unsafe_code)]

use bytes::Bytes;

use crate::clock::Time;
use crate::codec::mqtt::{Delivery, PacketId, QoS, Version};
use crate::ids::ConnId;
use crate::limits::SHARE_PAYLOAD_FROM;

use super::Dirty;
use super::alias::Naming;
use super::conn::Conn;
use super::publication::{Publication, Terms, remaining_secs};

/// All of it, or all but a large payload.
#[derive(Debug, Default)]
struct Variant {
    serial: u64,
    bytes: Vec<u8>,
    packet_id_at: usize,
    alias_at: usize,
    len: usize,
}

/// QoS and retain flag.
const FLAGS: usize = 6;
/// Before 5.0; 5.0 with the topic's name, with name and alias, with the alias alone.
const NAMINGS: usize = 4;
const VARIANTS: usize = FLAGS * NAMINGS;
/// A variant's buffer is kept up to this size.
const VARIANT_BYTES_KEPT: usize = 64 * 1024;

/// The form that one receiver gets.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Form {
    index: usize,
    naming: Naming,
    /// Bytes of the whole packet.
    pub(crate) len: usize,
}

/// The encoded forms of the publication in hand.
#[derive(Debug, Default)]
pub(crate) struct Variants {
    serial: u64,
    /// By naming, QoS and retain flag; the last is for those with Subscription Identifiers.
    variants: [Variant; VARIANTS + 1],
    /// Its payload, if that is large.
    shared: Option<Bytes>,
}

impl Variants {
    /// How this client gets the publication; None when it takes no packet of that size. Nothing is
    /// promised to the client before [`Variants::append`].
    #[inline]
    pub(crate) fn choose(
        &mut self,
        now: Time,
        publication: &Publication<'_>,
        conn: &mut Conn,
        qos: QoS,
        terms: &Terms<'_>,
    ) -> Option<Form> {
        let (version, len_max) = (conn.version(), conn.packet_size_max as usize);
        let naming = conn.choose_naming(publication.memo.topic_id(), publication.topic.len());
        let form = self.encode(now, publication, version, qos, terms, naming);
        if form.len <= len_max {
            return Some(form);
        }
        if let Naming::Both(_) = naming {
            // Without the alias it may fit.
            let form = self.encode(now, publication, version, qos, terms, Naming::Name);
            return (form.len <= len_max).then_some(form);
        }
        None
    }

    /// The form, encoded now unless this publication had it already.
    #[inline]
    fn encode(
        &mut self,
        now: Time,
        publication: &Publication<'_>,
        version: Version,
        qos: QoS,
        terms: &Terms<'_>,
        naming: Naming,
    ) -> Form {
        let is_v5 = version == Version::V5;
        let serial = match publication.memo.serial() {
            0 => self.begin(publication),
            serial => serial,
        };
        let with_ids = is_v5 && !terms.subscription_ids.is_empty();
        let index = if with_ids {
            VARIANTS
        } else {
            let naming = match naming {
                Naming::Name => usize::from(is_v5),
                Naming::Both(_) => 2,
                Naming::Alias(_) => 3,
            };
            naming * FLAGS + qos as usize * 2 + usize::from(terms.retain)
        };
        let variant = &mut self.variants[index];
        if variant.serial != serial || with_ids {
            variant.serial = serial;
            variant.encode(now, publication, version, qos, terms, naming);
        }
        Form { index, naming, len: variant.len }
    }

    fn begin(&mut self, publication: &Publication<'_>) -> u64 {
        self.serial += 1;
        publication.memo.set_serial(self.serial);
        self.shared = None;
        self.serial
    }

    /// The payload, to be shared, if it is large. Of two publications delivered in turns each
    /// finds its own.
    fn shared(&mut self, publication: &Publication<'_>) -> Option<Bytes> {
        if publication.payload.bytes.len() < SHARE_PAYLOAD_FROM {
            return None;
        }
        if let Some(shared) = publication.payload.shared {
            return Some(shared.clone());
        }
        if publication.memo.serial() != self.serial {
            return Some(publication.payload.to_shared());
        }
        Some(self.shared.get_or_insert_with(|| publication.payload.to_shared()).clone())
    }

    /// Copies the form that was chosen for it into a connection's outbox.
    #[inline]
    pub(crate) fn append(
        &mut self,
        (id, conn): (ConnId, &mut Conn),
        dirty: &mut Dirty,
        publication: &Publication<'_>,
        form: Form,
        packet_id: Option<PacketId>,
    ) {
        let variant = &self.variants[form.index];
        // Most of a fan-out: the bytes as they are.
        if packet_id.is_none() && form.naming == Naming::Name && form.len == variant.bytes.len() {
            conn.append(id, dirty, |outbox| outbox.extend_from_slice(&variant.bytes));
            return;
        }
        self.append_patched((id, conn), dirty, publication, form, packet_id);
    }

    fn append_patched(
        &mut self,
        (id, conn): (ConnId, &mut Conn),
        dirty: &mut Dirty,
        publication: &Publication<'_>,
        form: Form,
        packet_id: Option<PacketId>,
    ) {
        let shared = self.shared(publication);
        let variant = &self.variants[form.index];
        conn.append(id, dirty, |outbox| {
            let tail = outbox.tail();
            let start = tail.len();
            tail.extend_from_slice(&variant.bytes);
            let mut patch = |at: usize, number: u16| {
                let at = start + at;
                tail[at..at + 2].copy_from_slice(&number.to_be_bytes());
            };
            if let Some(packet_id) = packet_id {
                patch(variant.packet_id_at, packet_id.get());
            }
            if let Naming::Both(alias) | Naming::Alias(alias) = form.naming {
                patch(variant.alias_at, alias);
            }
            if let Some(shared) = shared {
                outbox.push_shared(shared);
            }
        });
        conn.on_named(publication.memo.topic_id(), form.naming);
    }
}

impl Variant {
    fn encode(
        &mut self,
        now: Time,
        publication: &Publication<'_>,
        version: Version,
        qos: QoS,
        terms: &Terms<'_>,
        naming: Naming,
    ) {
        self.bytes.clear();
        self.bytes.shrink_to(VARIANT_BYTES_KEPT);
        let payload = publication.payload.bytes;
        let mut delivery = Delivery {
            topic: publication.topic,
            qos,
            dup: false,
            retain: terms.retain,
            // Patched for each receiver, as the alias is.
            packet_id: (qos > QoS::AtMostOnce).then(|| PacketId::new(1)).flatten(),
            message_expiry_interval: remaining_secs(publication.deadline, now),
            topic_alias: None,
            subscription_ids: terms.subscription_ids,
            forwarded: publication.forwarded,
            payload_len: payload.len(),
        };
        naming.apply(&mut delivery);
        self.packet_id_at = delivery.encode_head(version, &mut self.bytes);
        if delivery.topic_alias.is_some() {
            self.alias_at = self.bytes.len() - delivery.len_behind_alias() - 2;
        }
        if payload.len() < SHARE_PAYLOAD_FROM {
            self.bytes.extend_from_slice(payload);
            self.len = self.bytes.len();
        } else {
            self.len = self.bytes.len() + payload.len();
        }
    }
}
