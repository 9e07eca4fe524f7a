//! Records as bytes: tables of hex, made-up bytes, and every record there and back.

use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use proptest::prelude::*;

use super::*;
use crate::broker::{Content, GroupName, Named};
use crate::codec::mqtt::{PacketId, QoS};
use crate::journal::testing::entry;

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect::<Vec<_>>().join(" ")
}

fn message(sequence: u64) -> MessageId {
    MessageId::new(ShardId::new(1), sequence)
}

const CLOCKS: Clocks =
    Clocks { monotonic: Time::from_nanos(5_000_000_000), unix_ms: 1_700_000_000_000 };

/// The groups that a PUB names travel behind it, and are no part of what is written.
#[test]
fn the_groups_of_a_pub_travel_with_it() {
    let named = |keys: &[&str]| -> Named {
        Some(keys.iter().map(|key| Rc::new(GroupName::of_none(key))).collect())
    };
    let publish = |sequence: u64, groups: Named| Record::Publish {
        message: MessageId::new(ShardId::new(0), sequence),
        publisher: Rc::from("p"),
        packet_id: None,
        content: Content::new("t", &[], Bytes::from_static(b"hi")),
        qos: QoS::AtLeastOnce,
        retain: false,
        deadline: None,
        is_will: false,
        groups,
    };
    let all: [&[&str]; 3] = [&["g/t", "h/#"], &[], &["g/+"]];
    let mut batch = Batch::default();
    for (number, keys) in (1..).zip(all) {
        let groups = named(keys).filter(|_| !keys.is_empty());
        batch.push(ShardId::new(0), number, &publish(number, groups), CLOCKS);
    }
    let mut read = 0;
    for ((body, entry), keys) in batch.entries().zip(all) {
        let Entry::Publish(publish) = entry else { panic!("{entry:?}") };
        for key in ["g/t", "h/#", "g/+", "g/", "/t"] {
            assert_eq!(publish.groups.contains(key), keys.contains(&key), "{key} of {keys:?}");
        }
        let bare = Publish { groups: Groups::default(), ..publish };
        assert_eq!(decode(body), Ok((ShardId::new(0), Entry::Publish(bare))));
        read += 1;
    }
    assert_eq!(read, all.len());
}

/// The format as it stands on disks: a change here needs a new version.
#[test]
fn every_record_has_its_bytes() {
    let client = || Rc::<str>::from("c1");
    let packet_id = PacketId::new(0x1234).unwrap();
    let table = [
        (
            Record::Publish {
                message: MessageId::new(ShardId::new(8), 0x0001_0203_0405_0607),
                publisher: client(),
                packet_id: Some(packet_id),
                content: Content::new("a/b", &[1, 2], Bytes::from_static(b"hi")),
                qos: QoS::ExactlyOnce,
                retain: true,
                deadline: Some(CLOCKS.monotonic + Duration::from_millis(1)),
                is_will: false,
                groups: None,
            },
            "01 03 36 08 07 06 05 04 03 02 01 34 12 01 68 e5 cf 8b 01 00 00 \
             02 63 31 03 61 2f 62 02 01 02 02 68 69",
        ),
        (
            Record::Session { client_id: client(), expiry_secs: 300, offline_since: None },
            "02 03 02 63 31 ac 02 00 00",
        ),
        (Record::SessionEnded { client_id: client() }, "03 03 02 63 31"),
        (
            Record::Subscribe {
                client_id: client(),
                filter: "a/#".into(),
                options: 1,
                subscription_id: Some(7),
                seen: vec![message(9), message(300)].into(),
            },
            "04 03 02 63 31 03 61 2f 23 01 08 02 81 12 81 d8 04",
        ),
        (
            Record::Unsubscribe { client_id: client(), filter: "a/#".into(), seen: Box::default() },
            "05 03 02 63 31 03 61 2f 23 00",
        ),
        (
            Record::WillSet {
                client_id: client(),
                topic: "w".into(),
                forwarded: Box::default(),
                payload: Bytes::from_static(b"x"),
                qos: QoS::AtLeastOnce,
                retain: true,
                delay_secs: 5,
                expiry_secs: Some(0),
            },
            "06 03 05 02 63 31 05 01 01 77 00 01 78",
        ),
        (Record::WillDeleted { client_id: client() }, "07 03 02 63 31"),
        (
            Record::Assign {
                client_id: client(),
                packet_id,
                message: Some(message(9)),
                retain: true,
                subscription_ids: vec![5].into(),
                group: Some("g/a".into()),
            },
            "08 03 02 63 31 34 12 81 12 0c 00 03 67 2f 61 01 05",
        ),
        (
            Record::Received { client_id: client(), packet_id, message: None },
            "09 03 02 63 31 34 12 00",
        ),
        (Record::Acked { client_id: client(), message: message(9) }, "0a 03 02 63 31 81 12"),
        (
            Record::Done { client_id: client(), packet_id, message: Some(message(9)) },
            "0b 03 02 63 31 34 12 81 12",
        ),
        (Record::Released { client_id: client(), packet_id }, "0c 03 02 63 31 34 12"),
        (
            Record::GroupAck { group: Rc::new(GroupName::of_none("g/a")), message: message(300) },
            "0d 03 03 67 2f 61 81 d8 04",
        ),
    ];
    for (record, bytes) in table {
        let (mut out, mut lists) = (Vec::new(), Vec::new());
        let entry = Entry::of(&record, CLOCKS, &mut lists);
        encode(&mut out, ShardId::new(3), &entry);
        assert_eq!(hex(&out), bytes, "{record:?}");
        assert_eq!(decode(&out), Ok((ShardId::new(3), entry)));
        for end in 0..out.len() {
            assert!(decode(&out[..end]).is_err(), "cut at {end}: {record:?}");
        }
    }
}

/// What only the host writes.
#[test]
fn copies_have_their_bytes() {
    let (mut ids, mut receivers) = (Vec::new(), Vec::new());
    let ids = Numbers::write([7, 200], &mut ids);
    let receiver = Receiver {
        number: 300,
        is_group: false,
        is_assigned: false,
        qos: 2,
        retain: true,
        subscription_ids: ids,
    };
    receiver.put(&mut receivers);
    let group = Receiver {
        number: 1,
        is_group: true,
        is_assigned: false,
        qos: 1,
        retain: false,
        subscription_ids: Numbers::default(),
    };
    group.put(&mut receivers);
    let receivers = Receivers::parse(&receivers).unwrap();
    assert_eq!(receivers.iter().collect::<Vec<_>>(), [receiver, group]);
    let publish = Publish {
        message: 0x301,
        is_copy: true,
        is_value: false,
        publisher: "p",
        packet_id: None,
        qos: 1,
        retain: false,
        is_will: false,
        deadline: None,
        topic: "t",
        forwarded: b"",
        payload: b"",
        groups: Groups::default(),
        receivers,
    };
    let assign = Assign {
        client_id: "c",
        packet_id: 1,
        message: Some(0x301),
        retain: true,
        group: Some("g/t"),
        subscription_ids: ids,
        copied: Some((9, true)),
    };
    let table = [
        (
            Entry::Publish(publish),
            "01 00 41 01 03 00 00 00 00 00 00 01 70 01 74 00 00 \
             ac 02 06 02 07 c8 01 01 01 00",
        ),
        (
            Entry::Session { client_id: "c", expiry_secs: 1, offline_since: Some(5), number: 128 },
            "02 00 01 63 01 06 80 01",
        ),
        (Entry::Assign(assign), "08 00 01 63 01 00 81 06 0f 09 03 67 2f 74 02 07 c8 01"),
        (
            Entry::Unreleased { client_id: "c", packet_id: 1, message: 0x301 },
            "0e 00 01 63 01 00 81 06",
        ),
        (Entry::Group { group: "g/t", number: 4 }, "0f 00 03 67 2f 74 04"),
        (Entry::Ended { client_id: "c", messages: ids }, "10 00 01 63 02 07 c8 01"),
    ];
    for (entry, bytes) in table {
        let mut out = Vec::new();
        encode(&mut out, ShardId::new(0), &entry);
        assert_eq!(hex(&out), bytes);
        assert_eq!(decode(&out), Ok((ShardId::new(0), entry)));
    }
}

#[test]
fn what_is_no_record_is_said_to_be_none() {
    for (bytes, error) in [
        (&b""[..], Malformed::Short),
        (b"\x03", Malformed::Short),
        (b"\x63\x00", Malformed::Kind(0x63)),
        (b"\x03\x40\x01c", Malformed::Value("the origin shard")),
        (b"\x03\x00\x01\xff", Malformed::Text),
        (b"\x03\x00\x01cx", Malformed::Trailing(1)),
        (b"\x09\x00\x01c\x00\x00\x00", Malformed::Value("a packet id")),
        (b"\x0d\x00\x01g\x00", Malformed::Value("a message id")),
        (b"\x0d\x00\x01g\x01", Malformed::Value("a message id")),
        (b"\x01\x00\x03", Malformed::Value("a QoS")),
        (b"\x06\x00\x08", Malformed::Value("the flags of a Will")),
    ] {
        assert_eq!(decode(bytes), Err(error), "{}", hex(bytes));
    }
}

#[test]
fn a_record_belongs_to_its_commit() {
    let mut out = Vec::new();
    put(&mut out, 7, |out| encode(out, ShardId::new(0), &Entry::SessionEnded { client_id: "c" }));
    assert_eq!(hex(&out[..4]), "04 00 00 00");
    assert_eq!(take(&out, 7), Ok(&out[RECORD_HEADER..]));
    assert_eq!(take(&out, 8), Err(Malformed::Checksum));
    assert_eq!(take(&out[..out.len() - 1], 7), Err(Malformed::Short));
    for bit in 0..out.len() * 8 {
        let mut bad = out.clone();
        bad[bit / 8] ^= 1 << (bit % 8);
        assert!(take(&bad, 7).is_err(), "bit {bit}");
    }
    assert_eq!(take(&[0; 64], 7), Err(Malformed::Checksum), "zeros are no record");
}

#[test]
fn times_are_wall_times_rounded_up() {
    let at = |nanos: i64| Time::from_nanos((5_000_000_000i64 + nanos) as u64);
    assert_eq!(CLOCKS.unix_ms_of(at(0)), 1_700_000_000_000);
    assert_eq!(CLOCKS.unix_ms_of(at(1)), 1_700_000_000_001);
    assert_eq!(CLOCKS.unix_ms_of(at(-1_000_001)), 1_699_999_999_999);
    assert_eq!(
        CLOCKS.unix_ms_of(Time::MAX),
        1_700_000_000_000 + (u64::MAX - 5_000_000_000).div_ceil(1_000_000)
    );
    assert_eq!(CLOCKS.time_of(1_700_000_000_250), at(250_000_000));
    assert_eq!(CLOCKS.time_of(1_699_999_999_000), at(-1_000_000_000));
    assert_eq!(CLOCKS.time_of(0), Time::ZERO);
}

#[test]
fn a_batch_keeps_order_and_is_used_again() {
    let mut batch = Batch::default();
    let entries = [Entry::SessionEnded { client_id: "a" }, Entry::WillDeleted { client_id: "b" }];
    for round in 0..2u64 {
        batch.sync = true;
        for (number, entry) in (1 + round * 10..).zip(&entries) {
            batch.push_entry(ShardId::new(1), number, entry);
        }
        let back: Vec<_> = batch.entries().map(|(_, entry)| entry).collect();
        assert_eq!(back, entries);
        assert_eq!((batch.len(), batch.last()), (2, 2 + round * 10));
        batch.clear(1024);
        assert!(batch.is_empty() && batch.entries().next().is_none() && !batch.sync);
    }
}

proptest! {
    #[test]
    fn every_entry_comes_back(owned in entry(), origin in 0..SHARDS_MAX) {
        let numbers = owned.numbers();
        let receivers = owned.receivers(&numbers);
        let entry = owned.borrow(&numbers, &receivers);
        let mut out = vec![0xaa];
        encode(&mut out, ShardId::new(origin), &entry);
        prop_assert_eq!(decode(&out[1..]), Ok((ShardId::new(origin), entry)));
    }

    #[test]
    fn made_up_bytes_are_refused_or_decoded(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        if let Ok((origin, entry)) = decode(&bytes) {
            let mut out = Vec::new();
            encode(&mut out, origin, &entry);
            prop_assert_eq!(decode(&out), Ok((origin, entry)));
        }
        let _ = take(&bytes, 1);
    }
}
