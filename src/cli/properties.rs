//! `-D PACKET NAME VALUE`: MQTT 5.0 properties by their names, as `mosquitto_pub` takes them.
//!
//! clap gives the values of all `-D` flags as one list; it is cut by its contents: a user property
//! has a key and a value, everything else one value.
#![forbid(unsafe_code)]

use std::num::NonZeroU16;

use crate::client::{Options, Properties};

/// All properties given, by packet.
#[derive(Debug, Default)]
pub(super) struct Given {
    pub(super) connect: ConnectGiven,
    pub(super) publish: Properties,
    pub(super) subscribe: Pairs,
    pub(super) subscription_id: Option<u32>,
    pub(super) unsubscribe: Pairs,
    pub(super) disconnect: Pairs,
    pub(super) disconnect_expiry: Option<u32>,
    pub(super) will: Properties,
    pub(super) will_delay: u32,
    pub(super) will_used: bool,
}

/// User properties, in order.
pub(super) type Pairs = Vec<(String, String)>;

/// Of CONNECT.
#[derive(Debug, Default)]
pub(super) struct ConnectGiven {
    session_expiry_interval: Option<u32>,
    receive_maximum: Option<u16>,
    maximum_packet_size: Option<u32>,
    topic_alias_maximum: Option<u16>,
    request_response_information: Option<bool>,
    request_problem_information: Option<bool>,
    authentication_method: Option<String>,
    authentication_data: Option<String>,
    user_properties: Pairs,
}

impl ConnectGiven {
    pub(super) fn apply(&self, options: &mut Options) {
        options.session_expiry_interval = self.session_expiry_interval.unwrap_or(0);
        options.receive_maximum = self.receive_maximum;
        options.maximum_packet_size = self.maximum_packet_size;
        options.topic_alias_maximum = self.topic_alias_maximum.unwrap_or(0);
        options.request_response_information = self.request_response_information;
        options.request_problem_information = self.request_problem_information;
        options.authentication_method.clone_from(&self.authentication_method);
        options.authentication_data =
            self.authentication_data.as_ref().map(|data| data.clone().into_bytes());
        options.user_properties.clone_from(&self.user_properties);
    }
}

impl Given {
    /// Reads the values of all `-D` flags.
    pub(super) fn parse(values: &[String]) -> Result<Self, String> {
        let mut given = Self::default();
        let mut values = values.iter().map(String::as_str);
        while let Some(packet) = values.next() {
            let name = values.next().ok_or_else(|| missing(packet, "a property name"))?;
            let value = values.next().ok_or_else(|| missing(packet, "a value"))?;
            if name == "user-property" {
                let pair = (value, values.next().ok_or_else(|| missing(packet, "a value"))?);
                let pair = (pair.0.to_owned(), pair.1.to_owned());
                given.user_properties(packet)?.push(pair);
            } else {
                given.set(packet, name, value)?;
            }
        }
        Ok(given)
    }

    fn user_properties(&mut self, packet: &str) -> Result<&mut Pairs, String> {
        Ok(match packet {
            "connect" => &mut self.connect.user_properties,
            "publish" => &mut self.publish.user_properties,
            "subscribe" => &mut self.subscribe,
            "unsubscribe" => &mut self.unsubscribe,
            "disconnect" => &mut self.disconnect,
            "will" => {
                self.will_used = true;
                &mut self.will.user_properties
            }
            _ => return Err(unknown_packet(packet)),
        })
    }

    fn set(&mut self, packet: &str, name: &str, value: &str) -> Result<(), String> {
        match packet {
            "connect" => self.set_connect(name, value),
            "publish" => set_message(&mut self.publish, packet, name, value),
            "subscribe" if name == "subscription-identifier" => {
                let id = number(name, value, 1, 268_435_455)?;
                self.subscription_id = Some(id);
                Ok(())
            }
            "disconnect" if name == "session-expiry-interval" => {
                self.disconnect_expiry = Some(number(name, value, 0, u32::MAX)?);
                Ok(())
            }
            "will" if name == "will-delay-interval" => {
                self.will_used = true;
                self.will_delay = number(name, value, 0, u32::MAX)?;
                Ok(())
            }
            "will" => {
                self.will_used = true;
                set_message(&mut self.will, packet, name, value)
            }
            "subscribe" | "unsubscribe" | "disconnect" => Err(unknown_name(packet, name)),
            _ => Err(unknown_packet(packet)),
        }
    }

    fn set_connect(&mut self, name: &str, value: &str) -> Result<(), String> {
        let to = &mut self.connect;
        match name {
            "session-expiry-interval" => {
                to.session_expiry_interval = Some(number(name, value, 0, u32::MAX)?);
            }
            "receive-maximum" => to.receive_maximum = Some(short(name, value, 1)?),
            "maximum-packet-size" => {
                to.maximum_packet_size = Some(number(name, value, 1, u32::MAX)?);
            }
            "topic-alias-maximum" => to.topic_alias_maximum = Some(short(name, value, 0)?),
            "request-response-information" => {
                to.request_response_information = Some(boolean(name, value)?);
            }
            "request-problem-information" => {
                to.request_problem_information = Some(boolean(name, value)?);
            }
            "authentication-method" => to.authentication_method = Some(value.into()),
            "authentication-data" => to.authentication_data = Some(value.into()),
            _ => return Err(unknown_name("connect", name)),
        }
        Ok(())
    }
}

fn set_message(to: &mut Properties, packet: &str, name: &str, value: &str) -> Result<(), String> {
    match name {
        "payload-format-indicator" => to.payload_format = Some(boolean(name, value)?),
        "message-expiry-interval" => {
            to.message_expiry_interval = Some(number(name, value, 0, u32::MAX)?);
        }
        "content-type" => to.content_type = Some(value.into()),
        "response-topic" => to.response_topic = Some(value.into()),
        "correlation-data" => to.correlation_data = Some(value.into()),
        "topic-alias" if packet == "publish" => {
            to.topic_alias = NonZeroU16::new(short(name, value, 1)?);
        }
        _ => return Err(unknown_name(packet, name)),
    }
    Ok(())
}

fn number(name: &str, value: &str, least: u32, most: u32) -> Result<u32, String> {
    match value.parse() {
        Ok(number) if (least..=most).contains(&number) => Ok(number),
        _ => Err(format!("-D: {name} is a number from {least} to {most}, not {value:?}")),
    }
}

fn short(name: &str, value: &str, least: u16) -> Result<u16, String> {
    let number = number(name, value, least.into(), u16::MAX.into())?;
    Ok(u16::try_from(number).expect("invariant: bounded by the call above"))
}

fn boolean(name: &str, value: &str) -> Result<bool, String> {
    Ok(number(name, value, 0, 1)? == 1)
}

fn missing(packet: &str, what: &str) -> String {
    format!("-D {packet}: {what} is missing")
}

fn unknown_name(packet: &str, name: &str) -> String {
    format!("-D: {packet} has no property {name:?}")
}

fn unknown_packet(packet: &str) -> String {
    format!(
        "-D: {packet:?} is none of connect, publish, subscribe, unsubscribe, disconnect and will"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Given, String> {
        let values: Vec<_> = line.split(' ').map(String::from).collect();
        Given::parse(&values)
    }

    #[test]
    fn several_in_a_row() {
        let given = parse(
            "publish user-property k v connect receive-maximum 7 publish content-type text \
             publish user-property k w subscribe subscription-identifier 9 \
             will will-delay-interval 3 disconnect session-expiry-interval 0",
        )
        .unwrap();
        let pair = |value: &str| ("k".to_owned(), value.to_owned());
        assert_eq!(given.publish.user_properties, [pair("v"), pair("w")]);
        assert_eq!(given.connect.receive_maximum, Some(7));
        assert_eq!(given.publish.content_type.as_deref(), Some("text"));
        assert_eq!(given.subscription_id, Some(9));
        assert_eq!((given.will_delay, given.will_used), (3, true));
        assert_eq!(given.disconnect_expiry, Some(0));
    }

    #[test]
    fn says_what_is_wrong() {
        for (line, expected) in [
            ("publish topic-alias 0", "a number from 1 to 65535"),
            ("publish user-property k", "a value is missing"),
            ("publish will-delay-interval 1", "no property"),
            ("puback user-property k v", "none of"),
            ("connect receive-maximum 65536", "a number from 1"),
            ("subscribe content-type x", "no property"),
            ("will topic-alias 1", "no property"),
        ] {
            let error = parse(line).unwrap_err();
            assert!(error.contains(expected), "{line}: {error}");
        }
    }
}
