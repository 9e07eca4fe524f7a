//! Who may connect, publish and subscribe: the hook that decides.
#![forbid(unsafe_code)]

use std::fmt;

use crate::codec::mqtt::{ReasonCode, Version};
use crate::ids::ConnId;

use super::Accepted;

/// What is known of a client that wants to connect.
#[derive(Clone, Copy)]
pub struct ConnectRequest<'a> {
    /// Its connection, to be named with a decision that comes later.
    pub conn: ConnId,
    /// How that came in.
    pub accepted: Accepted,
    /// What it speaks.
    pub version: Version,
    /// Its client id; empty when it leaves that to us.
    pub client_id: &'a str,
    /// Its user name.
    pub user_name: Option<&'a str>,
    /// Its password. Never to be logged.
    pub password: Option<&'a [u8]>,
    /// The authentication method that has proven who it is. The user name is then what the method
    /// has found, or else an unproven one of CONNECT; the password is not given again.
    pub method: Option<&'a str>,
}

impl fmt::Debug for ConnectRequest<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConnectRequest")
            .field("conn", &self.conn)
            .field("client_id", &self.client_id)
            .field("user_name", &self.user_name)
            .field("method", &self.method)
            .finish_non_exhaustive()
    }
}

/// What becomes of a CONNECT.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// It is accepted.
    Accept,
    /// It is refused, for this reason (0x80 or above).
    Refuse(ReasonCode),
    /// [`super::Broker::handle_connect_decision`] will say; the connection waits.
    Later,
}

/// Decides for one shard. It must not block: what takes time is decided later.
pub trait Authorize: fmt::Debug {
    /// Whether this client may connect.
    fn connect(&mut self, request: &ConnectRequest<'_>) -> Decision;
    /// Whether this client may publish to this topic.
    fn publish(&mut self, client_id: &str, topic: &str) -> bool;
    /// Whether this client may subscribe to this filter, given without `$share/name/`.
    fn subscribe(&mut self, client_id: &str, filter: &str) -> bool;
}

/// The decider in use.
#[derive(Debug, Default)]
pub enum Auth {
    /// Everybody may everything.
    #[default]
    AllowAll,
    /// Somebody decides.
    Decided(Box<dyn Authorize>),
}

impl Auth {
    pub(crate) fn connect(&mut self, request: &ConnectRequest<'_>) -> Decision {
        match self {
            Self::AllowAll => Decision::Accept,
            Self::Decided(authorize) => authorize.connect(request),
        }
    }

    #[inline]
    pub(crate) fn may_publish(&mut self, client_id: &str, topic: &str) -> bool {
        match self {
            Self::AllowAll => true,
            Self::Decided(authorize) => authorize.publish(client_id, topic),
        }
    }

    pub(crate) fn may_subscribe(&mut self, client_id: &str, filter: &str) -> bool {
        match self {
            Self::AllowAll => true,
            Self::Decided(authorize) => authorize.subscribe(client_id, filter),
        }
    }
}
