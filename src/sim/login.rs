//! An authentication method for simulated clients: the client names a number of steps, and then the
//! two count it down together.
#![forbid(unsafe_code)]

use crate::broker::{Claim, Exchange, Method, Outcome};
use crate::codec::mqtt::ReasonCode;

/// Its name.
pub const NAME: &str = "countdown";
/// The data of a success.
pub const DONE: &[u8] = b"done";

/// The broker's side.
#[derive(Debug)]
pub struct Countdown;

impl Method for Countdown {
    fn name(&self) -> &str {
        NAME
    }

    fn begin(&mut self, _claim: &Claim<'_>) -> Box<dyn Exchange> {
        Box::new(Count { left: None })
    }
}

struct Count {
    /// What the client is to say next; it begins with what it likes.
    left: Option<u8>,
}

impl Exchange for Count {
    fn step(&mut self, data: Option<&[u8]>) -> Outcome {
        let Some(&[said]) = data else {
            return Outcome::Failure(ReasonCode::NOT_AUTHORIZED);
        };
        if self.left.is_some_and(|left| left != said) {
            return Outcome::Failure(ReasonCode::NOT_AUTHORIZED);
        }
        match said.checked_sub(1) {
            None => Outcome::Success { data: Some(DONE.to_vec()), user_name: None },
            Some(left) => {
                self.left = Some(left);
                Outcome::Continue(Some(vec![left]))
            }
        }
    }
}
