//! The identifier of an allocation within the process.

use std::fmt;
use std::str::FromStr;

use crate::turn::AllocationId;

/// Identifies an allocation among those of all workers, in the log and on the control socket. It is never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct SessionId {
    /// The index of the worker.
    pub(crate) worker: usize,
    pub(crate) allocation: AllocationId,
}

/// A text is not a session ID.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a session ID has three numbers, such as 0-17-42")]
pub(crate) struct NotASessionId;

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.worker, self.allocation)
    }
}

impl FromStr for SessionId {
    type Err = NotASessionId;

    /// Parses what `Display` writes.
    fn from_str(text: &str) -> Result<Self, NotASessionId> {
        let (worker, allocation) = text.split_once('-').ok_or(NotASessionId)?;
        let worker = worker.parse().map_err(|_| NotASessionId)?;
        Ok(Self { worker, allocation: allocation.parse().map_err(|_| NotASessionId)? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_id_is_parsed_as_it_is_displayed() {
        let id: SessionId = "3-17-4294967295".parse().unwrap();
        assert_eq!((id.worker, id.to_string().as_str()), (3, "3-17-4294967295"));
        for wrong in ["", "3", "3-17", "3-17-", "3-17-1-1", "a-17-1", "3-17-4294967296", "-3-17-1"] {
            assert_eq!(wrong.parse::<SessionId>(), Err(NotASessionId), "{wrong}");
        }
    }
}
